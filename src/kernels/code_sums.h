// Sums over the codes of each group, from which the best scale for these codes follows.
#pragma once

#include "weighted_group.h"

namespace roundel {

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
    const auto sums = WeightedGroup<Isa>(c, row, k).sums(c.scale[at], c.zero[at]);
    c.codes[at] = sums.codes;
    c.squares[at] = sums.squares;
    c.products[at] = sums.products;
  }
}

}  // namespace
}  // namespace roundel
