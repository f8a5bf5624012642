// Sums over the codes of each group, from which the best scale for these codes follows.
#pragma once

#include "grid.h"

namespace roundel {

// Over the group, with a = q - z (q, where there are minima): of h a, h a a and h a w.
struct CodeSums : Weights {
  const float* scale;  // [rows, groups]
  const float* zero;
  float *codes, *squares, *products;  // [rows, groups]
};

namespace {

template <class Isa>
void sum_codes(const CodeSums& c, int64_t row) {
  for (int64_t k = 0; k < c.shape.groups; ++k) {
    const int64_t at = row * c.shape.groups + k;
    const Grid<Isa> grid(c.kind, c.scale[at], c.zero[at]);
    const float *weight = c.weight + at * c.shape.group, *importance = c.importance + k * c.shape.group;
    auto codes = everywhere<Isa>(0), squares = codes, products = codes;
    for (int64_t i = 0; i < c.shape.group; i += kLanes) {
      const auto w = load<Isa>(weight + i, c.shape.group - i);
      const auto code = clamp(grid.rounded(w / grid.scale), grid.levels);
      const auto a = grid.minima ? code : code - grid.zero;
      const auto weighted = a * load<Isa>(importance + i, c.shape.group - i);
      codes = codes + weighted;
      squares = squares + weighted * a;
      products = products + weighted * w;
    }
    c.codes[at] = total(codes);
    c.squares[at] = total(squares);
    c.products[at] = total(products);
  }
}

}  // namespace
}  // namespace roundel
