// Weights in groups, on grids that are not fixed yet: learned_rounding.h moves them, grid_search.h tries many.
#pragma once

#include "lanes.h"

namespace roundel {

//     w^ = s (clamp(round(w / s + v) + z, 0, levels) - z)
struct GridKind {
  float levels;
  bool round_zero;  // zero points are integers, and added behind the rounding
  bool minima;      // in the place of zero points there are values of code 0: w^ = s q + z
};

// [rows, groups, group]; a row has `columns`, and behind them padding.
struct Groups {
  int64_t rows, columns, groups, group;
};

// What every kernel for such grids reads.
struct Weights {
  Groups shape;
  GridKind kind;
  const float* weight;      // [rows, groups, group]
  const float* importance;  // [groups, group]: h, of each column; null where nobody asks
};

namespace {

// Scale and zero point of one group, or of one in every lane.
template <class Isa>
struct Grid {
  Lanes<Isa> scale, zero;
  Lanes<Isa> code_zero;  // where zero lies among the codes
  Lanes<Isa> levels;
  bool round_zero, minima;

  Grid(const GridKind& kind, float s, float z) : Grid(kind, everywhere<Isa>(s), everywhere<Isa>(z)) {}
  Grid(const GridKind& kind, const Lanes<Isa>& s, const Lanes<Isa>& z)
      : scale(s),
        zero(z),
        code_zero(kind.minima ? everywhere<Isa>(0) - z / s : z),
        levels(everywhere<Isa>(kind.levels)),
        round_zero(kind.round_zero),
        minima(kind.minima) {}

  // Codes before they are clamped, of weights over scales, offsets added.
  Lanes<Isa> rounded(const Lanes<Isa>& position) const {
    return round_zero ? round(position) + code_zero : round(position + code_zero);
  }
  Lanes<Isa> decoded(const Lanes<Isa>& code) const {
    return minima ? code * scale + zero : (code - zero) * scale;
  }
};

}  // namespace
}  // namespace roundel
