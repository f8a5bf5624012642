// The best of several grids for every group: the one with the least weighted error of rounding to nearest.
#pragma once

#include "weighted_group.h"

namespace roundel {

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
    const WeightedGroup<Isa> group(c, row, k);
    for (int64_t number = 0; number < c.count; ++number) {
      const float error = group.error(c.scales[number * of_all + at], c.zeros[number * of_all + at]);
      if (error < c.error[at]) {
        c.error[at] = error;
        c.choice[at] = static_cast<int32_t>(number);
      }
    }
  }
}

}  // namespace
}  // namespace roundel
