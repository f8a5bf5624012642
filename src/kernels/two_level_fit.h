// Grids whose scales and real zero points lie, tile by tile, on a grid of their own (SpQR, arXiv 2306.03078): the joint fit
// of both, which grid/joint.py says, and what leaving out each weight would save, which methods/leave_one_out.py says.
// Tiles have as many rows as there are lanes, and a row in each.
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

// Floats that a tile wants beside it, for each column.
constexpr int64_t kTileFitScratch = 3 * kLanes;

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
Lanes<Isa> tile_rows(const float* column, int64_t row, int64_t rows) {
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

inline float rounded_to(Number type, float x) {
  if (type == Number::Float16) return from_float16(to_float16(x));
  if (type == Number::Bfloat16) return from_bfloat16(to_bfloat16(x));
  return x;
}

// The grid of one tile's scales or zero points.
template <class Isa>
struct Level {
  float step, offset;
  float top;

  // Over the values, or a share of their range.
  static Level spanning(const float* values, float top, float share, const float* fixed,
                        const TwoLevelFit& f) {
    float low = *std::min_element(values, values + kLanes), high = *std::max_element(values, values + kLanes);
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
  void save(const Lanes<Isa>& of, const StoredLevel& to, int64_t tile, int64_t count) const {
    float found[kLanes];
    store<Isa>(found, codes(of), kLanes);
    for (int64_t i = 0; i < count; ++i) to.codes[tile * kLanes + i] = static_cast<uint8_t>(found[i]);
    to.step[tile] = step;
    to.offset[tile] = offset;
  }

 private:
  Lanes<Isa> within(const Lanes<Isa>& codes) const { return clamp(codes, everywhere<Isa>(top)); }
};

// The best grids of a tile's rows so far; those of a share of the range of zero points.
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

// The fit of one tile, whose columns are [columns, 16].
template <class Isa>
class TileFit {
 public:
  Lanes<Isa> scale, zero;
  Level<Isa> scales, zeros;

  TileFit(const TwoLevelFit& f, const float* columns) : f_(f), columns_(columns) {
    Lanes<Isa> smallest = load<Isa>(columns, kLanes), largest = smallest;
    for (int64_t j = 1; j < f.columns; ++j) {
      const auto column = load<Isa>(columns + j * kLanes, kLanes);
      smallest = smaller(smallest, column);
      largest = larger(largest, column);
    }
    middle_ = (smallest + largest) / everywhere<Isa>(2);
    start_from((largest - smallest) / everywhere<Isa>(f.levels));
    try_all();
  }

 private:
  const TwoLevelFit& f_;
  const float* columns_;
  Lanes<Isa> middle_, centre_, wanted_;

  // Scales with which no row spoils its tile.
  void start_from(const Lanes<Isa>& ranges) {
    float of[kLanes], middle[kLanes], centre[kLanes];
    store<Isa>(of, ranges, kLanes);
    store<Isa>(middle, middle_, kLanes);
    float largest = of[0], own = 0;
    for (int i = 0; i < kLanes; ++i) {
      centre[i] = of[i] > 0 ? f_.levels / 2 : std::floor(f_.levels / 2);
      middle[i] = std::fabs(middle[i]);
      largest = std::max(largest, of[i]);
      own = std::max(own, middle[i] > 0 ? middle[i] : f_.small);
    }
    for (int i = 0; i < kLanes; ++i) {
      of[i] = of[i] > 0 ? of[i] : largest > 0 ? largest : own;
      of[i] = std::max(of[i], f_.least_share * largest);
      of[i] = std::max(of[i], middle[i] / (2 * f_.levels));
    }
    centre_ = load<Isa>(centre, kLanes);
    wanted_ = load<Isa>(of, kLanes);
    scales = Level<Isa>::spanning(of, f_.scale_top, 1, nullptr, f_);
  }

  // The zero point that puts the middle of the codes on the middle of the range.
  Lanes<Isa> zero_for(const Lanes<Isa>& of) const { return centre_ - middle_ / of; }

  void try_all() {
    const Lanes<Isa> nearest = scales.codes(wanted_);
    float zero_points[kLanes];
    store<Isa>(zero_points, zero_for(scales.values(nearest)), kLanes);
    const float centre = f_.levels / 2;
    float least = 0;
    for (int64_t range = 0; range < f_.zero_range_count; ++range) {
      const auto level = Level<Isa>::spanning(zero_points, f_.zero_top, f_.zero_ranges[range],
                                              f_.zero_symmetric ? &centre : nullptr, f_);
      const BestRows<Isa> best = best_on(level, nearest);
      const float error = total(load<Isa>(best.error, kLanes));
      if (range > 0 && !(error < least)) continue;
      least = error;
      zeros = level;
      scale = load<Isa>(best.scale, kLanes);
      zero = load<Isa>(best.zero, kLanes);
    }
  }

  BestRows<Isa> best_on(const Level<Isa>& level, const Lanes<Isa>& nearest) const {
    const auto first = scales.values(scales.beside(nearest, -f_.scale_reach));
    BestRows<Isa> best(first, level.values(level.beside(level.codes(zero_for(first)), -f_.zero_reach)));
    for (int shift = -f_.scale_reach; shift <= f_.scale_reach; ++shift) {
      const auto tried = scales.values(scales.beside(nearest, shift));
      const auto codes = level.codes(zero_for(tried));
      for (int other = -f_.zero_reach; other <= f_.zero_reach; ++other) {
        const auto tried_zero = level.values(level.beside(codes, other));
        best.offer(error(tried, tried_zero), tried, tried_zero);
      }
    }
    return best;
  }

  Lanes<Isa> error(const Lanes<Isa>& tried, const Lanes<Isa>& tried_zero) const {
    const Grid<Isa> grid({f_.levels, false, false}, tried, tried_zero);
    const auto inverse = everywhere<Isa>(1) / tried;
    return sum_columns<Isa>(f_.columns, [&](int64_t j) {
      const auto w = load<Isa>(columns_ + j * kLanes, kLanes);
      const auto miss = grid.decoded(clamp(grid.rounded(w * inverse), grid.levels)) - w;
      return miss * miss * everywhere<Isa>(f_.importance[j]);
    });
  }
};

template <class Isa>
void take_tile(const TwoLevelFit& f, int64_t tile, float* to) {
  for (int64_t j = 0; j < f.columns; ++j)
    store<Isa>(to + j * kLanes, tile_rows<Isa>(f.weight + j * f.rows, tile * kLanes, f.rows), kLanes);
}

template <class Isa>
void fit_tile(const TwoLevelFit& f, const FittedGrids& to, int64_t tile, float* scratch) {
  const int64_t row = tile * kLanes, count = std::min<int64_t>(kLanes, f.rows - row);
  take_tile<Isa>(f, tile, scratch);
  const TileFit<Isa> fit(f, scratch);
  store<Isa>(to.scale + row, fit.scale, count);
  store<Isa>(to.zero + row, fit.zero, count);
  fit.scales.save(fit.scale, to.scales, tile, count);
  fit.zeros.save(fit.zero, to.zeros, tile, count);
}

// What every weight of [columns, 16] misses by, [columns, 16], and the sums of columns.
template <class Isa>
Lanes<Isa> misses(const LeaveOneOut& l, const float* columns, const Lanes<Isa>& scale, const Lanes<Isa>& zero,
                  float* to) {
  const Grid<Isa> grid({l.fit.levels, false, false}, scale, zero);
  return sum_columns<Isa>(l.fit.columns, [&](int64_t j) {
    const auto w = load<Isa>(columns + j * kLanes, kLanes);
    const auto miss = grid.decoded(clamp(grid.rounded(w / grid.scale), grid.levels)) - w;
    const auto found = miss * miss * everywhere<Isa>(l.importance[j]);
    store<Isa>(to + j * kLanes, found, kLanes);
    return found;
  });
}

// Leaving out a weight saves its own error, and a smallest or largest one changes the grid of the others.
template <class Isa>
void leave_one_out(const LeaveOneOut& l, int64_t tile, float* scratch) {
  const int64_t columns = l.fit.columns, rows = l.fit.rows, row = tile * kLanes;
  float *weights = scratch, *saved = weights + columns * kLanes, *rest = saved + columns * kLanes;
  take_tile<Isa>(l.fit, tile, weights);
  const auto own = misses(l, weights, tile_rows<Isa>(l.scale, row, rows), tile_rows<Isa>(l.zero, row, rows), saved);
  float all[kLanes], extreme[2][kLanes], saves[2][kLanes];
  int64_t place[2][kLanes];
  const auto column = [&](int64_t j) { return load<Isa>(weights + j * kLanes, kLanes); };
  store<Isa>(all, sum_columns<Isa>(columns, column), kLanes);
  for (int i = 0; i < kLanes; ++i) place[0][i] = place[1][i] = 0;
  for (int64_t j = 1; j < columns; ++j) {
    for (int i = 0; i < kLanes; ++i) {
      if (weights[j * kLanes + i] < weights[place[0][i] * kLanes + i]) place[0][i] = j;
      if (weights[j * kLanes + i] > weights[place[1][i] * kLanes + i]) place[1][i] = j;
    }
  }
  for (int end = 0; end < 2; ++end) {
    // It lies in the middle of the rest, and counts for nothing.
    for (int i = 0; i < kLanes; ++i) {
      float& w = weights[place[end][i] * kLanes + i];
      extreme[end][i] = w;
      w = (all[i] - w) / static_cast<float>(columns - 1);
    }
    const TileFit<Isa> fit(l.fit, weights);
    float of_rest[kLanes], of_own[kLanes];
    store<Isa>(of_rest, misses(l, weights, fit.scale, fit.zero, rest), kLanes);
    store<Isa>(of_own, own, kLanes);
    for (int i = 0; i < kLanes; ++i) {
      const int64_t at = place[end][i] * kLanes + i;
      saves[end][i] = of_own[i] - (of_rest[i] - rest[at]);
      weights[at] = extreme[end][i];
    }
  }
  for (int end = 0; end < 2; ++end)
    for (int i = 0; i < kLanes; ++i) saved[place[end][i] * kLanes + i] = saves[end][i];
  const int64_t count = std::min<int64_t>(kLanes, rows - row);
  for (int64_t j = 0; j < columns; ++j)
    store<Isa>(l.saved + j * rows + row, load<Isa>(saved + j * kLanes, kLanes), count);
}

}  // namespace
}  // namespace roundel
