// Scales and zero points of one tile as floats: stored forms are read once, for all tokens.
#pragma once

#include "instruction_sets.h"
#include "numbers.h"

namespace roundel {
namespace {

template <class Isa, Number TYPE>
void fill_plain(const void* values, int64_t at, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += Isa::kRows) Isa::store(to + i, Isa::template numbers<TYPE>(values, at + i));
}

// `count` numbers from `at` on, a multiple of 16.
template <class Isa>
void fill(Number type, const void* values, int64_t at, int64_t count, float* to) {
  switch (type) {
    case Number::Float32: return fill_plain<Isa, Number::Float32>(values, at, count, to);
    case Number::Float16: return fill_plain<Isa, Number::Float16>(values, at, count, to);
    case Number::Bfloat16: return fill_plain<Isa, Number::Bfloat16>(values, at, count, to);
    case Number::Unsigned8: return fill_plain<Isa, Number::Unsigned8>(values, at, count, to);
    case Number::Signed8: return fill_plain<Isa, Number::Signed8>(values, at, count, to);
    case Number::LowNibble: return fill_plain<Isa, Number::LowNibble>(values, at, count, to);
    case Number::HighNibble: return fill_plain<Isa, Number::HighNibble>(values, at, count, to);
    case Number::None: return;
  }
}

// (code - shift) * step, where every row has its own, shared by neighbouring groups.
template <class Isa, Number TYPE>
void apply_rows(const Statistic& s, int64_t tile, int64_t groups, float* to) {
  const int64_t first = tile * (groups / s.level_groups);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t cell = (first + group / s.level_groups) * kTileRows;
    for (int v = 0; v < Isa::kVectors; ++v, to += Isa::kRows) {
      auto found = Isa::real_load(to);
      if (s.shift != nullptr) found = Isa::subtract(found, Isa::template numbers<TYPE>(s.shift, cell + v * Isa::kRows));
      Isa::store(to, Isa::multiply(found, Isa::template numbers<TYPE>(s.step, cell + v * Isa::kRows)));
    }
  }
}

// The same, where all rows of the tile share those of a group.
template <class Isa, Number TYPE>
void apply_tiles(const Statistic& s, int64_t tile, int64_t groups, float* to) {
  constexpr int kAtOnce = 64;
  float steps[kAtOnce], shifts[kAtOnce];
  const int64_t first = tile * kTileRows / s.level_rows * groups;
  for (int64_t begin = 0; begin < groups; begin += kAtOnce) {
    const int count = static_cast<int>(groups - begin < kAtOnce ? groups - begin : kAtOnce);
    int i = 0;
    for (; i + Isa::kRows <= count; i += Isa::kRows) {
      Isa::store(steps + i, Isa::template numbers<TYPE>(s.step, first + begin + i));
      Isa::store(shifts + i, Isa::template numbers<TYPE>(s.shift, first + begin + i));
    }
    for (; i < count; ++i) {
      steps[i] = number<TYPE>(s.step, first + begin + i);
      shifts[i] = number<TYPE>(s.shift, first + begin + i);
    }
    for (i = 0; i < count; ++i) {
      const auto step = Isa::broadcast(steps[i]), shift = Isa::broadcast(shifts[i]);
      for (int v = 0; v < Isa::kVectors; ++v, to += Isa::kRows)
        Isa::store(to, Isa::multiply(Isa::subtract(Isa::real_load(to), shift), step));
    }
  }
}

template <class Isa, Number TYPE>
void apply_level(const Statistic& s, int64_t tile, int64_t groups, float* to) {
  if (s.level_rows == 0) {
    apply_rows<Isa, TYPE>(s, tile, groups, to);
  } else {
    apply_tiles<Isa, TYPE>(s, tile, groups, to);
  }
}

// A statistic of a tile, [groups, 16].
template <class Isa>
void statistic_of(const Statistic& s, int64_t tile, int64_t groups, float* to) {
  fill<Isa>(s.type, s.values, tile * groups * kTileRows, groups * kTileRows, to);
  if (s.level_type == Number::Float16) apply_level<Isa, Number::Float16>(s, tile, groups, to);
  if (s.level_type == Number::Bfloat16) apply_level<Isa, Number::Bfloat16>(s, tile, groups, to);
  if (s.level_type == Number::Float32) apply_level<Isa, Number::Float32>(s, tile, groups, to);
}

// Scales of a tile, and its zero points as they are stored, [groups, 16] each; without zero points `zeros` stays as it is.
template <class Isa>
void tile_statistics(const Matrix& m, int64_t tile, float* scales, float* zeros) {
  statistic_of<Isa>(m.scale, tile, m.groups, scales);
  if (m.zero.type != Number::None) statistic_of<Isa>(m.zero, tile, m.groups, zeros);
}

// Stored zero points become the values of the middle codes, which products count from.
template <class Isa>
void centre(const Matrix& m, const float* scales, float* zeros) {
  const auto middle = Isa::broadcast(static_cast<float>(1 << (m.bits - 1)));
  for (int64_t i = 0; i < m.groups * kTileRows; i += Isa::kRows) {
    const auto scale = Isa::real_load(scales + i), zero = Isa::real_load(zeros + i);
    Isa::store(zeros + i, m.minima ? Isa::fma(scale, middle, zero) : Isa::multiply(scale, Isa::subtract(middle, zero)));
  }
}

}  // namespace
}  // namespace roundel
