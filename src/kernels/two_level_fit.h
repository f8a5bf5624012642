// Grids whose scales and real zero points lie, tile by tile, on a grid of their own (SpQR, arXiv 2306.03078): the joint fit
// of both, which grid/joint.py says, and what leaving out each weight would save, which methods/leave_one_out.py says.
// Rows are in the lanes; a tile has some times as many.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "grid.h"
#include "grid_search.h"
#include "numbers.h"

namespace roundel {

// The second level of one statistic, as it is stored: value = step * (code - offset).
struct StoredLevel {
  uint8_t* codes;        // [rows]
  float *step, *offset;  // [tiles]
};

// How the grids of a group are found.
struct TwoLevelFit {
  int64_t columns, rows;
  int64_t tile_rows;        // some times kLanes
  const float* weight;      // [columns, rows], a column of the group contiguous
  const float* importance;  // [columns]
  float levels;
  float scale_top, zero_top;  // the largest codes of scales, of zero points
  bool zero_symmetric;        // zero points lie symmetric about the middle of the codes
  Number type;                // of steps and offsets
  int scale_reach, zero_reach;  // codes to either side of the nearest that are tried
  const float* zero_ranges;     // of a tile's zero points: shares of the whole that are tried
  int64_t zero_range_count;
  float least_share, small;     // the least scale, as a share of the largest of its tile; that of nothing but zeros
  float point, least_step;      // ranges, and steps, as shares of the largest value: below, a point; at least
};

// Where to put them.
struct FittedGrids {
  float *scale, *zero;  // [rows]
  StoredLevel scales, zeros;
};

struct LeaveOneOut {
  TwoLevelFit fit;
  const float* importance;    // [columns], by which errors count
  const float *scale, *zero;  // [rows], the grids of whole groups
  float* saved;               // [columns, rows]
};

// Room for the work on one tile.
struct TileRoom {
  float* columns;   // [kTileMatrices, columns, tile_rows]
  float* rows;      // [kTileRowsOfNumbers, tile_rows]
  int64_t* places;  // [2, tile_rows]
};
constexpr int64_t kTileMatrices = 3, kTileRowsOfNumbers = 14;

namespace {

template <class Isa>
Lanes<Isa> smaller(const Lanes<Isa>& a, const Lanes<Isa>& b) {
  return each<Isa>([&](int i) { return Isa::smaller(a.of[i], b.of[i]); });
}
template <class Isa>
Lanes<Isa> larger(const Lanes<Isa>& a, const Lanes<Isa>& b) {
  return each<Isa>([&](int i) { return Isa::larger(a.of[i], b.of[i]); });
}

// Sixteen rows of a matrix; behind its last row, that row again.
template <class Isa>
Lanes<Isa> rows_of(const float* column, int64_t row, int64_t rows) {
  if (rows - row >= kLanes) return load<Isa>(column + row, kLanes);
  float of[kLanes];
  for (int i = 0; i < kLanes; ++i) of[i] = column[std::min(row + i, rows - 1)];
  return load<Isa>(of, kLanes);
}

// term(j) of every column, added in the order of `total`.
template <class Isa, class Term>
Lanes<Isa> sum_columns(int64_t columns, const Term& term) {
  Lanes<Isa> sums[kLanes];
  for (int j = 0; j < kLanes; ++j) sums[j] = j < columns ? term(j) : everywhere<Isa>(0);
  for (int64_t j = kLanes; j < columns; ++j) sums[j % kLanes] = sums[j % kLanes] + term(j);
  for (int apart = kLanes / 2; apart > 0; apart /= 2)
    for (int j = 0; j < apart; ++j) sums[j] = sums[j] + sums[j + apart];
  return sums[0];
}

// The grid of one tile's scales or zero points.
template <class Isa>
struct Level {
  float step, offset;
  float top;

  // Over the `count` values, or a share of their range; about `fixed`, where that is given.
  static Level spanning(const float* values, int64_t count, float top, float share, const float* fixed,
                        const TwoLevelFit& f) {
    float low = *std::min_element(values, values + count), high = *std::max_element(values, values + count);
    const float centre = fixed ? *fixed : (low + high) / 2;
    const float half = (fixed ? std::max(high - centre, centre - low) : (high - low) / 2) * share;
    low = centre - half;
    high = centre + half;
    const float size = std::max(std::fabs(low), std::fabs(high));
    const bool point = high - low <= f.point * size;
    const float wanted = std::max((high - low) / top, f.least_step * size);
    const float step = stored_scale(point ? std::fabs(centre) : wanted, f.type);
    const float sign = centre > 0 ? 1.0f : centre < 0 ? -1.0f : 0.0f;
    return {step, rounded_to(f.type, point ? -sign : -low / step), top};
  }

  Lanes<Isa> codes(const Lanes<Isa>& values) const {
    return within(round(values / everywhere<Isa>(step) + everywhere<Isa>(offset)));
  }
  Lanes<Isa> beside(const Lanes<Isa>& codes, int shift) const {
    return within(codes + everywhere<Isa>(static_cast<float>(shift)));
  }
  Lanes<Isa> values(const Lanes<Isa>& codes) const {
    return (codes - everywhere<Isa>(offset)) * everywhere<Isa>(step);
  }

 private:
  Lanes<Isa> within(const Lanes<Isa>& codes) const { return clamp(codes, everywhere<Isa>(top)); }
};

// The best grids of sixteen rows so far; those of a share of the range of zero points.
template <class Isa>
struct BestRows {
  float error[kLanes], scale[kLanes], zero[kLanes];

  // Rows where nothing is less than infinite keep the first.
  BestRows(const Lanes<Isa>& first_scale, const Lanes<Isa>& first_zero) {
    std::fill_n(error, kLanes, std::numeric_limits<float>::infinity());
    store<Isa>(scale, first_scale, kLanes);
    store<Isa>(zero, first_zero, kLanes);
  }
  void offer(const Lanes<Isa>& found, const Lanes<Isa>& other_scale, const Lanes<Isa>& other_zero) {
    float errors[kLanes], scales[kLanes], zeros[kLanes];
    store<Isa>(errors, found, kLanes);
    store<Isa>(scales, other_scale, kLanes);
    store<Isa>(zeros, other_zero, kLanes);
    for (int i = 0; i < kLanes; ++i) {
      const bool better = errors[i] < error[i];
      scale[i] = better ? scales[i] : scale[i];
      zero[i] = better ? zeros[i] : zero[i];
      error[i] = better ? errors[i] : error[i];
    }
  }
};

// The fit of one tile, whose columns are [columns, tile_rows]. What it finds lies in the room that it is given.
template <class Isa>
class TileFit {
 public:
  static constexpr int64_t kRoom = 8;  // floats for each row

  float *scale, *zero;  // [tile_rows]
  Level<Isa> scales, zeros;

  TileFit(const TwoLevelFit& f, const float* columns, float* room) : f_(f), columns_(columns) {
    for (float** part : {&scale, &zero, &middle_, &centre_, &wanted_, &wanted_zero_, &tried_, &tried_zero_}) {
      *part = room;
      room += f.tile_rows;
    }
    span();
    try_ranges();
  }

 private:
  const TwoLevelFit& f_;
  const float* columns_;
  float *middle_, *centre_, *wanted_, *wanted_zero_, *tried_, *tried_zero_;

  Lanes<Isa> at(const float* numbers, int64_t row) const { return load<Isa>(numbers + row, kLanes); }
  Lanes<Isa> column(int64_t j, int64_t row) const { return at(columns_ + j * f_.tile_rows, row); }

  void span() {
    for (int64_t row = 0; row < f_.tile_rows; row += kLanes) {
      Lanes<Isa> smallest = column(0, row), largest = smallest;
      for (int64_t j = 1; j < f_.columns; ++j) {
        smallest = smaller(smallest, column(j, row));
        largest = larger(largest, column(j, row));
      }
      store<Isa>(middle_ + row, (smallest + largest) / everywhere<Isa>(2), kLanes);
      store<Isa>(wanted_ + row, (largest - smallest) / everywhere<Isa>(f_.levels), kLanes);
    }
    make_sound();
    scales = Level<Isa>::spanning(wanted_, f_.tile_rows, f_.scale_top, 1, nullptr, f_);
    for (int64_t row = 0; row < f_.tile_rows; row += kLanes)
      store<Isa>(wanted_zero_ + row, zero_for(row, scales.values(nearest(row))), kLanes);
  }

  // Scales with which no row spoils its tile.
  void make_sound() {
    float largest = wanted_[0], own = 0;
    for (int64_t i = 0; i < f_.tile_rows; ++i) {
      const float size = std::fabs(middle_[i]);
      centre_[i] = wanted_[i] > 0 ? f_.levels / 2 : std::floor(f_.levels / 2);
      largest = std::max(largest, wanted_[i]);
      own = std::max(own, size > 0 ? size : f_.small);
    }
    for (int64_t i = 0; i < f_.tile_rows; ++i) {
      float of = wanted_[i] > 0 ? wanted_[i] : largest > 0 ? largest : own;
      of = std::max(of, f_.least_share * largest);
      wanted_[i] = std::max(of, std::fabs(middle_[i]) / (2 * f_.levels));
    }
  }

  Lanes<Isa> nearest(int64_t row) const { return scales.codes(at(wanted_, row)); }

  // The zero point that puts the middle of the codes on the middle of the range.
  Lanes<Isa> zero_for(int64_t row, const Lanes<Isa>& of) const { return at(centre_, row) - at(middle_, row) / of; }

  void try_ranges() {
    const float centre = f_.levels / 2;
    float least = 0;
    for (int64_t range = 0; range < f_.zero_range_count; ++range) {
      const auto level = Level<Isa>::spanning(wanted_zero_, f_.tile_rows, f_.zero_top, f_.zero_ranges[range],
                                              f_.zero_symmetric ? &centre : nullptr, f_);
      auto errors = everywhere<Isa>(0);
      for (int64_t row = 0; row < f_.tile_rows; row += kLanes) {
        const BestRows<Isa> best = best_on(level, row);
        errors = errors + load<Isa>(best.error, kLanes);
        std::copy_n(best.scale, kLanes, tried_ + row);
        std::copy_n(best.zero, kLanes, tried_zero_ + row);
      }
      const float error = total(errors);
      if (range > 0 && !(error < least)) continue;
      least = error;
      zeros = level;
      std::swap(scale, tried_);
      std::swap(zero, tried_zero_);
    }
  }

  BestRows<Isa> best_on(const Level<Isa>& level, int64_t row) const {
    const auto middle = nearest(row), first = scales.values(scales.beside(middle, -f_.scale_reach));
    BestRows<Isa> best(first, level.values(level.beside(level.codes(zero_for(row, first)), -f_.zero_reach)));
    for (int shift = -f_.scale_reach; shift <= f_.scale_reach; ++shift) {
      const auto other = scales.values(scales.beside(middle, shift));
      const auto codes = level.codes(zero_for(row, other));
      for (int beside = -f_.zero_reach; beside <= f_.zero_reach; ++beside) {
        const auto other_zero = level.values(level.beside(codes, beside));
        best.offer(error(row, other, other_zero), other, other_zero);
      }
    }
    return best;
  }

  Lanes<Isa> error(int64_t row, const Lanes<Isa>& other, const Lanes<Isa>& other_zero) const {
    const Grid<Isa> grid({f_.levels, false, false}, other, other_zero);
    const auto inverse = everywhere<Isa>(1) / other;
    return sum_columns<Isa>(f_.columns, [&](int64_t j) {
      const auto w = column(j, row);
      const auto miss = grid.decoded(clamp(grid.rounded(w * inverse), grid.levels)) - w;
      return miss * miss * everywhere<Isa>(f_.importance[j]);
    });
  }
};

template <class Isa>
void take_tile(const TwoLevelFit& f, int64_t tile, float* to) {
  for (int64_t j = 0; j < f.columns; ++j)
    for (int64_t row = 0; row < f.tile_rows; row += kLanes)
      store<Isa>(to + j * f.tile_rows + row, rows_of<Isa>(f.weight + j * f.rows, tile * f.tile_rows + row, f.rows),
                 kLanes);
}

// The statistic of a tile's first `count` rows, and its second level.
template <class Isa>
void save_level(const Level<Isa>& level, const float* values, const StoredLevel& to, int64_t tile, int64_t tile_rows,
                int64_t count) {
  for (int64_t row = 0; row < count; row += kLanes) {
    float codes[kLanes];
    store<Isa>(codes, level.codes(load<Isa>(values + row, kLanes)), kLanes);
    for (int64_t i = 0; i < std::min<int64_t>(kLanes, count - row); ++i)
      to.codes[tile * tile_rows + row + i] = static_cast<uint8_t>(codes[i]);
  }
  to.step[tile] = level.step;
  to.offset[tile] = level.offset;
}

template <class Isa>
void fit_tile(const TwoLevelFit& f, const FittedGrids& to, int64_t tile, const TileRoom& room) {
  const int64_t first = tile * f.tile_rows, count = std::min(f.tile_rows, f.rows - first);
  take_tile<Isa>(f, tile, room.columns);
  const TileFit<Isa> fit(f, room.columns, room.rows);
  std::copy_n(fit.scale, count, to.scale + first);
  std::copy_n(fit.zero, count, to.zero + first);
  save_level(fit.scales, fit.scale, to.scales, tile, f.tile_rows, count);
  save_level(fit.zeros, fit.zero, to.zeros, tile, f.tile_rows, count);
}

// What every weight of [columns, tile_rows] misses by, likewise, and the sums of columns.
template <class Isa>
void misses(const LeaveOneOut& l, const float* columns, const float* scale, const float* zero, float* to, float* sums) {
  const int64_t stride = l.fit.tile_rows;
  for (int64_t row = 0; row < stride; row += kLanes) {
    const Grid<Isa> grid({l.fit.levels, false, false}, load<Isa>(scale + row, kLanes), load<Isa>(zero + row, kLanes));
    const auto sum = sum_columns<Isa>(l.fit.columns, [&](int64_t j) {
      const auto w = load<Isa>(columns + j * stride + row, kLanes);
      const auto miss = grid.decoded(clamp(grid.rounded(w / grid.scale), grid.levels)) - w;
      const auto found = miss * miss * everywhere<Isa>(l.importance[j]);
      store<Isa>(to + j * stride + row, found, kLanes);
      return found;
    });
    store<Isa>(sums + row, sum, kLanes);
  }
}

// Leaving out a weight saves its own error, and a smallest or largest one changes the grid of the others.
template <class Isa>
void leave_one_out(const LeaveOneOut& l, int64_t tile, const TileRoom& room) {
  const int64_t columns = l.fit.columns, rows = l.fit.rows, n = l.fit.tile_rows, first = tile * n;
  float *weights = room.columns, *saved = weights + columns * n, *rest = saved + columns * n;
  float *own = room.rows, *all = own + n, *extreme = all + n, *of_rest = extreme + n, *saves[2] = {of_rest + n, of_rest + 2 * n};
  float* of_fit = of_rest + 3 * n;
  int64_t* places[2] = {room.places, room.places + n};
  take_tile<Isa>(l.fit, tile, weights);
  for (int64_t row = 0; row < n; row += kLanes) {
    store<Isa>(of_rest + row, rows_of<Isa>(l.scale, first + row, rows), kLanes);
    store<Isa>(extreme + row, rows_of<Isa>(l.zero, first + row, rows), kLanes);
    const auto column = [&](int64_t j) { return load<Isa>(weights + j * n + row, kLanes); };
    store<Isa>(all + row, sum_columns<Isa>(columns, column), kLanes);
  }
  misses<Isa>(l, weights, of_rest, extreme, saved, own);
  std::fill_n(room.places, 2 * n, 0);
  for (int64_t j = 1; j < columns; ++j) {
    for (int64_t i = 0; i < n; ++i) {
      if (weights[j * n + i] < weights[places[0][i] * n + i]) places[0][i] = j;
      if (weights[j * n + i] > weights[places[1][i] * n + i]) places[1][i] = j;
    }
  }
  for (int end = 0; end < 2; ++end) {
    // It lies in the middle of the rest, and counts for nothing.
    for (int64_t i = 0; i < n; ++i) {
      float& w = weights[places[end][i] * n + i];
      extreme[i] = w;
      w = (all[i] - w) / static_cast<float>(columns - 1);
    }
    const TileFit<Isa> fit(l.fit, weights, of_fit);
    misses<Isa>(l, weights, fit.scale, fit.zero, rest, of_rest);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = places[end][i] * n + i;
      saves[end][i] = own[i] - (of_rest[i] - rest[at]);
      weights[at] = extreme[i];
    }
  }
  for (int end = 0; end < 2; ++end)
    for (int64_t i = 0; i < n; ++i) saved[places[end][i] * n + i] = saves[end][i];
  for (int64_t j = 0; j < columns; ++j) std::copy_n(saved + j * n, std::min(n, rows - first), l.saved + j * rows + first);
}

}  // namespace
}  // namespace roundel
