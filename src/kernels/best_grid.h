// The best of several grids for every group: the one with the least weighted error of rounding to nearest.
#pragma once

#include <algorithm>

#include "grid.h"

namespace roundel {

//     E(s, z) = sum_j h_j (w^_j - w_j)^2
struct Candidates : Weights {
  int64_t count;
  const float* scales;  // [count, rows, groups]
  const float* zeros;
  // Of the best one, [rows, groups]: its number, and its error. What is there already stays where none has less.
  int32_t* choice;
  float* error;
};

namespace {

template <class Isa>
void choose_grids(const Candidates& c, int64_t row) {
  for (int64_t k = 0; k < c.shape.groups; ++k) {
    const int64_t at = row * c.shape.groups + k, of_all = c.shape.rows * c.shape.groups;
    const float *weight = c.weight + at * c.shape.group, *importance = c.importance + k * c.shape.group;
    for (int64_t number = 0; number < c.count; ++number) {
      const Grid<Isa> grid(c.kind, c.scales[number * of_all + at], c.zeros[number * of_all + at]);
      auto sum = everywhere<Isa>(0);
      for (int64_t i = 0; i < c.shape.group; i += kLanes) {
        const auto w = load<Isa>(weight + i, c.shape.group - i);
        const auto miss = grid.decoded(clamp(grid.rounded(w / grid.scale), grid.levels)) - w;
        sum = sum + miss * miss * load<Isa>(importance + i, c.shape.group - i);
      }
      const float error = total(sum);
      if (error < c.error[at]) {
        c.error[at] = error;
        c.choice[at] = static_cast<int32_t>(number);
      }
    }
  }
}

}  // namespace
}  // namespace roundel
