// One group of weights as searches for its grid see it: the error of rounding it to nearest, and sums over its codes.
// Weights are multiplied by what one is divided by the scale: as many divisions take longer than all the rest. Only a
// weight in the middle between two codes, which err alike, may get the other one.
#pragma once

#include "grid.h"

namespace roundel {
namespace {

template <class Isa>
class WeightedGroup {
 public:
  WeightedGroup(const Weights& all, int64_t row, int64_t number)
      : kind_(all.kind),
        width_(all.shape.group),
        weight_(all.weight + (row * all.shape.groups + number) * width_),
        importance_(all.importance + number * width_) {}

  // sum_j h_j (w^_j - w_j)^2
  float error(float scale, float zero) const {
    const Grid<Isa> grid(kind_, scale, zero);
    const auto inverse = everywhere<Isa>(1.0f / scale);
    auto sum = everywhere<Isa>(0);
    for (int64_t i = 0; i < width_; i += kLanes) {
      const auto w = load<Isa>(weight_ + i, width_ - i);
      const auto miss = grid.decoded(clamp(grid.rounded(w * inverse), grid.levels)) - w;
      sum = sum + miss * miss * load<Isa>(importance_ + i, width_ - i);
    }
    return total(sum);
  }

  // With a = q - z (q, where there are minima): of h a, h a a and h a w.
  struct Sums {
    float codes, squares, products;
  };
  Sums sums(float scale, float zero) const {
    const Grid<Isa> grid(kind_, scale, zero);
    const auto inverse = everywhere<Isa>(1.0f / scale);
    auto codes = everywhere<Isa>(0), squares = codes, products = codes;
    for (int64_t i = 0; i < width_; i += kLanes) {
      const auto w = load<Isa>(weight_ + i, width_ - i);
      const auto code = clamp(grid.rounded(w * inverse), grid.levels);
      const auto a = grid.minima ? code : code - grid.zero;
      const auto weighted = a * load<Isa>(importance_ + i, width_ - i);
      codes = codes + weighted;
      squares = squares + weighted * a;
      products = products + weighted * w;
    }
    return {total(codes), total(squares), total(products)};
  }

 private:
  const GridKind kind_;
  const int64_t width_;
  const float *weight_, *importance_;
};

}  // namespace
}  // namespace roundel
