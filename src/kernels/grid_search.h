// The searched grid of every group: which ranges are tried, and how the best of them is refined, says grid/search.py.
#pragma once

#include <algorithm>
#include <cmath>

#include "numbers.h"
#include "weighted_group.h"

namespace roundel {

struct GridSearch : Weights {
  Number type;          // in which scales are stored
  const float* shares;  // of the start's range: lengths to try
  int64_t share_count;
  const float* factors;  // of the best scale so far: its neighbours
  int64_t factor_count;
  bool zeros;  // ranges have two ends, and zero points neighbours; else sizes are tried
  int64_t rounds;
  float *scale, *zero;  // [rows, groups]: the start; in place, what is found
};

namespace {

// As it is stored: of a size that the type can tell from zero, and not larger than it has.
inline float stored_scale(float scale, Number type) {
  const float least = type == Number::Float16 ? 0x1p-24f : 0x1p-126f;
  const float most = type == Number::Float16    ? 65504.0f
                     : type == Number::Bfloat16 ? from_bits(0x7f7f0000u)
                                                : from_bits(0x7f7fffffu);
  float size = std::fabs(scale);
  size = size < least ? least : size > most ? most : size;
  size = rounded_to(type, size);
  return scale < 0 ? -size : size;
}

// The best grid of a group so far.
template <class Isa>
class BestGrid {
 public:
  float scale, zero;

  BestGrid(const WeightedGroup<Isa>& group, float scale, float zero)
      : scale(scale), zero(zero), group_(group), error_(group.error(scale, std::nearbyint(zero))) {}

  void offer(float other, float other_zero) {
    const float found = group_.error(other, other_zero);
    if (!(found < error_)) return;
    error_ = found;
    scale = other;
    zero = other_zero;
  }

 private:
  const WeightedGroup<Isa>& group_;
  float error_;
};

template <class Isa>
void try_ranges(const GridSearch& s, BestGrid<Isa>& best) {
  const float levels = s.kind.levels, scale = best.scale, zero = best.zero;
  if (!s.zeros) {
    for (int64_t i = 0; i < s.share_count; ++i) best.offer(stored_scale(scale * s.shares[i], s.type), zero);
    return;
  }
  const float low = -zero * scale, high = (levels - zero) * scale;
  for (int64_t i = 0; i < s.share_count; ++i) {
    const float from = s.shares[i] * low;
    for (int64_t j = 0; j < s.share_count; ++j) {
      const float tried = stored_scale((s.shares[j] * high - from) / levels, s.type);
      best.offer(tried, std::min(std::max(std::nearbyint(-from / tried), 0.0f), levels));
    }
  }
}

template <class Isa>
void try_neighbours(const GridSearch& s, BestGrid<Isa>& best) {
  const float scale = best.scale, zero = std::nearbyint(best.zero);
  const int reach = s.zeros ? 1 : 0;
  for (int shift = -reach; shift <= reach; ++shift) {
    const float shifted = std::min(std::max(zero + static_cast<float>(shift), 0.0f), s.kind.levels);
    for (int64_t i = 0; i < s.factor_count; ++i) best.offer(stored_scale(scale * s.factors[i], s.type), shifted);
  }
}

template <class Isa>
void search_grids(const GridSearch& s, int64_t row) {
  for (int64_t k = 0; k < s.shape.groups; ++k) {
    const int64_t at = row * s.shape.groups + k;
    const WeightedGroup<Isa> group(s, row, k);
    BestGrid<Isa> best(group, s.scale[at], s.zero[at]);
    try_ranges(s, best);
    for (int64_t round = 0; round < s.rounds; ++round) {
      try_neighbours(s, best);
      for (int refit = 0; refit < 2; ++refit) {
        const float zero = std::nearbyint(best.zero);
        const auto sums = group.sums(best.scale, zero);
        const float scale = sums.squares > 0 ? sums.products / sums.squares : best.scale;
        best.offer(stored_scale(scale, s.type), zero);
      }
    }
    s.scale[at] = best.scale;
    s.zero[at] = best.zero;
  }
}

}  // namespace
}  // namespace roundel
