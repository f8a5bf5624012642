// Rounding with error feedback: a few columns one after the other, and what each leaves for those behind it (GPTQ, arXiv
// 2210.17323). Rows of the weight are in the lanes; they are independent of each other.
#pragma once

#include <algorithm>

#include "grid.h"
#include "numbers.h"

namespace roundel {

// Matrices are [columns, rows]: a column of the weight is contiguous. Columns are in the order of rounding.
struct ErrorFeedback {
  int64_t columns, rows;
  GridKind kind;
  const float* original;
  const float* update;        // [columns, columns]: update[k, i] times the error of column i < k is added to column k
  const float *scale, *zero;  // [groups, rows]
  const int64_t* group;       // [columns]
  const uint8_t* mask;        // what is kept as outliers; null: nothing
  float *present, *error;     // what a column is rounded from; original - rounded
  uint8_t* codes;
  uint16_t* residual;         // [columns, rows] float16, zeros: what outliers have beside their codes
};

// At once: a cache of the first level keeps what these columns of these rows missed, and rows are as many sums that do
// not wait for each other.
constexpr int64_t kMostColumns = 64;
constexpr int kBlocks = 4;
constexpr int64_t kRowsAtOnce = kBlocks * kLanes;

namespace {

// present - rounded of those in the mask, in float16, is added to them.
template <class Isa>
Lanes<Isa> with_outliers(const ErrorFeedback& r, int64_t at, int64_t count, const Lanes<Isa>& present,
                         const Lanes<Isa>& rounded) {
  if (std::none_of(r.mask + at, r.mask + at + count, [](uint8_t kept) { return kept; })) return rounded;
  float from[kLanes], to[kLanes];
  store<Isa>(from, present, kLanes);
  store<Isa>(to, rounded, kLanes);
  for (int64_t i = 0; i < count; ++i) {
    if (!r.mask[at + i]) continue;
    r.residual[at + i] = to_float16(from[i] - to[i]);
    to[i] += from_float16(r.residual[at + i]);
  }
  return load<Isa>(to, kLanes);
}

// A column of at most kLanes rows, rounded from `present`.
template <class Isa>
Lanes<Isa> round_column(const ErrorFeedback& r, int64_t column, int64_t row, int64_t count, const Lanes<Isa>& present) {
  const int64_t at = column * r.rows + row, of_group = r.group[column] * r.rows + row;
  const Grid<Isa> grid(r.kind, load<Isa>(r.scale + of_group, count), load<Isa>(r.zero + of_group, count));
  const Lanes<Isa> code = clamp(grid.rounded(present / grid.scale), grid.levels);
  Lanes<Isa> rounded = grid.decoded(code);
  if (r.mask != nullptr) rounded = with_outliers(r, at, count, present, rounded);
  const Lanes<Isa> error = load<Isa>(r.original + at, count) - rounded;
  store<Isa>(r.present + at, present, count);
  store<Isa>(r.error + at, error, count);
  float codes[kLanes];
  store<Isa>(codes, code, kLanes);
  for (int64_t i = 0; i < count; ++i) r.codes[at + i] = static_cast<uint8_t>(codes[i]);
  return error;
}

// Columns [first, last), at most kMostColumns, of at most kRowsAtOnce rows.
template <class Isa>
void round_columns(const ErrorFeedback& r, int64_t first, int64_t last, int64_t row) {
  Lanes<Isa> errors[kMostColumns][kBlocks], present[kBlocks];
  int64_t counts[kBlocks];
  for (int b = 0; b < kBlocks; ++b) counts[b] = std::clamp<int64_t>(r.rows - row - b * kLanes, 0, kLanes);
  for (int64_t k = first; k < last; ++k) {
    const float* update = r.update + k * r.columns + first;
    for (int b = 0; b < kBlocks; ++b) present[b] = load<Isa>(r.present + k * r.rows + row + b * kLanes, counts[b]);
    for (int64_t i = 0; i < k - first; ++i) {
      const auto share = everywhere<Isa>(update[i]);
      for (int b = 0; b < kBlocks; ++b) present[b] = present[b] + share * errors[i][b];
    }
    for (int b = 0; b < kBlocks; ++b)
      errors[k - first][b] = round_column(r, k, row + b * kLanes, counts[b], present[b]);
  }
}

}  // namespace
}  // namespace roundel
