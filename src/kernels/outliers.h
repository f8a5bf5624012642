// Products with the few weights that are stored beside the grid.
#pragma once

#include "instruction_sets.h"
#include "numbers.h"

namespace roundel {
namespace {

// Values, fp16 bits, times the activations of their columns: 16 sums, each of every sixteenth, added up in halves, so that
// vectors of any width give the same. `readable` of both are there, `count` of them are meant.
template <class Isa, class Column>
inline float sparse_dot(const uint16_t* values, const Column* columns, int64_t count, int64_t readable, const float* x) {
  constexpr int kSums = 16, kParts = kSums / Isa::kRows;
  typename Isa::Real sum[kParts];
  for (auto& part : sum) part = Isa::real_zero();
  int64_t i = 0;
  for (; i < count && i + kSums <= readable; i += kSums) {
    for (int p = 0; p < kParts; ++p) {
      const int64_t at = i + p * Isa::kRows;
      const auto value = Isa::template numbers<Number::Float16>(values, at);
      const auto product = Isa::multiply(value, Isa::gather(x, columns + at));
      sum[p] = Isa::add(sum[p], Isa::first(product, count - at));
    }
  }
  float sums[kSums];
  for (int p = 0; p < kParts; ++p) Isa::store(sums + p * Isa::kRows, sum[p]);
  for (int k = 0; i < count; ++i, ++k) sums[k] += number<Number::Float16>(values, i) * x[columns[i]];
  for (int half = kSums / 2; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
  return sums[0];
}

template <class Isa, class Column>
void multiply_outliers_at(const Matrix& m, const Column* columns, int64_t tile, const float* x, float* y) {
  const Outliers& o = m.outliers;
  const int64_t first = tile * kTileRows, rows = m.rows - first < kTileRows ? m.rows - first : kTileRows;
  const int32_t* starts = o.starts + first;
  for (int64_t r = 0; r < rows; ++r)
    y[r] += sparse_dot<Isa>(o.values + starts[r], columns + starts[r], starts[r + 1] - starts[r],
                            o.starts[m.rows] - starts[r], x);
}

// Adds to [16] what the outliers of a tile's rows make of the activations x, in the order of the codes.
template <class Isa>
void multiply_outliers(const Matrix& m, int64_t tile, const float* x, float* y) {
  if (m.outliers.wide) return multiply_outliers_at<Isa>(m, static_cast<const int32_t*>(m.outliers.columns), tile, x, y);
  multiply_outliers_at<Isa>(m, static_cast<const uint16_t*>(m.outliers.columns), tile, x, y);
}

}  // namespace
}  // namespace roundel
