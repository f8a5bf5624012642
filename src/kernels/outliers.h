// Products with the few weights that are stored beside the grid.
#pragma once

#include "instruction_sets.h"
#include "numbers.h"

namespace roundel {
namespace {

template <class Isa, class Column>
void multiply_outliers_at(const Matrix& m, const Column* columns, int64_t tile, const float* x, float* y) {
  constexpr int kAtOnce = 16;
  const Outliers& o = m.outliers;
  const int64_t first = tile * kTileRows, rows = m.rows - first < kTileRows ? m.rows - first : kTileRows;
  for (int64_t r = 0; r < rows; ++r) {
    int32_t i = o.starts[first + r];
    const int32_t end = o.starts[first + r + 1];
    float sums[4] = {}, values[kAtOnce];
    for (; i + kAtOnce <= end; i += kAtOnce) {
      for (int v = 0; v < kAtOnce; v += Isa::kRows)
        Isa::store(values + v, Isa::template numbers<Number::Float16>(o.values, i + v));
      for (int k = 0; k < kAtOnce; ++k) sums[k % 4] += values[k] * x[columns[i + k]];
    }
    for (; i < end; ++i) sums[0] += number<Number::Float16>(o.values, i) * x[columns[i]];
    y[r] += (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
}

// Adds to [16] what the outliers of a tile's rows make of the activations x, in the order of the codes.
template <class Isa>
void multiply_outliers(const Matrix& m, int64_t tile, const float* x, float* y) {
  if (m.outliers.wide) return multiply_outliers_at<Isa>(m, static_cast<const int32_t*>(m.outliers.columns), tile, x, y);
  multiply_outliers_at<Isa>(m, static_cast<const uint16_t*>(m.outliers.columns), tile, x, y);
}

}  // namespace
}  // namespace roundel
