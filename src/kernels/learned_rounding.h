// Rounding that is learned: weights on their grids, and signed steps of the rounding offsets (SignRound, arXiv 2309.05516).
#pragma once

#include <algorithm>

#include "grid.h"

namespace roundel {

struct LearnedRounding : Weights {
  const float* scale;  // [rows, groups]
  const float* zero;
  float* offset;       // as `weight`
};

// What a step does with the gradient of the rounded weights, and what it leaves for the ranges.
struct Descent {
  float step;         // of the offsets
  float* grad_scale;  // [rows, groups]; null: nobody asks
  float* grad_zero;
};

namespace {

// The weights of a row on their grids, [columns] of float or of bfloat16.
template <class Isa, class Out>
void round_row(const LearnedRounding& r, int64_t row, Out* to) {
  for (int64_t k = 0; k < r.shape.groups; ++k) {
    const int64_t at = row * r.shape.groups + k, begin = k * r.shape.group;
    const Grid<Isa> grid(r.kind, r.scale[at], r.zero[at]);
    const float* weight = r.weight + at * r.shape.group;
    const float* offset = r.offset + at * r.shape.group;
    const int64_t width = std::min(r.shape.group, r.shape.columns - begin);
    for (int64_t i = 0; i < width; i += kLanes) {
      const auto position = load<Isa>(weight + i, width - i) / grid.scale + load<Isa>(offset + i, width - i);
      store<Isa>(to + begin + i, grid.decoded(clamp(grid.rounded(position), grid.levels)), width - i);
    }
  }
}

// With r the code before it is clamped to q, u = w / s, and inside = [0 <= r <= levels]:
//     d/dv = s inside    d/ds = (q - z) - u inside    d/dz = s (inside - 1)
// and with minima d/ds = q - (u + code_zero) inside, d/dz = 1 - inside.
template <class Isa, class In>
void descend_row(const LearnedRounding& r, int64_t row, const In* gradient, const Descent& descent) {
  const auto step = everywhere<Isa>(descent.step), nothing = everywhere<Isa>(0);
  for (int64_t k = 0; k < r.shape.groups; ++k) {
    const int64_t at = row * r.shape.groups + k, begin = k * r.shape.group;
    const Grid<Isa> grid(r.kind, r.scale[at], r.zero[at]);
    const float* weight = r.weight + at * r.shape.group;
    float* offset = r.offset + at * r.shape.group;
    const int64_t width = std::min(r.shape.group, r.shape.columns - begin);
    auto of_scale = nothing, of_all = nothing, of_passed = nothing;
    for (int64_t i = 0; i < width; i += kLanes) {
      const auto u = load<Isa>(weight + i, width - i) / grid.scale;
      const auto v = load<Isa>(offset + i, width - i), g = load<Isa>(gradient + begin + i, width - i);
      const auto code = grid.rounded(u + v);
      const auto passed = inside(code, grid.levels, g);
      const auto from = grid.minima ? inside(code, grid.levels, grid.code_zero) : grid.zero;
      of_scale = of_scale + (clamp(code, grid.levels) - from - inside(code, grid.levels, u)) * g;
      of_all = of_all + g;
      of_passed = of_passed + passed;
      store<Isa>(offset + i, v - signed_size(passed * grid.scale, step), width - i);
    }
    if (descent.grad_scale == nullptr) continue;
    const float moved = total(of_all) - total(of_passed);
    descent.grad_scale[at] = total(of_scale);
    descent.grad_zero[at] = grid.minima ? moved : -moved * r.scale[at];
  }
}

template <class Isa>
void round_learned(const LearnedRounding& r, int64_t row, Number type, void* to) {
  if (type == Number::Bfloat16) {
    round_row<Isa>(r, row, static_cast<uint16_t*>(to) + row * r.shape.columns);
  } else {
    round_row<Isa>(r, row, static_cast<float*>(to) + row * r.shape.columns);
  }
}

template <class Isa>
void descend(const LearnedRounding& r, int64_t row, Number type, const void* gradient, const Descent& descent) {
  if (type == Number::Bfloat16) {
    descend_row<Isa>(r, row, static_cast<const uint16_t*>(gradient) + row * r.shape.columns, descent);
  } else {
    descend_row<Isa>(r, row, static_cast<const float*>(gradient) + row * r.shape.columns, descent);
  }
}

}  // namespace
}  // namespace roundel
