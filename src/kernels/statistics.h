// Scales and zero points of one tile as floats: stored forms are read once, for all tokens.
#pragma once

#include "numbers.h"
#include "prefetch.h"
#include "product.h"

namespace roundel {
namespace {

template <Number TYPE>
inline void prefetch_numbers(const void* values, int64_t at, int64_t count) {
  if constexpr (TYPE == Number::Float32) return prefetch(static_cast<const float*>(values) + at, count);
  if constexpr (TYPE == Number::Float16 || TYPE == Number::Bfloat16)
    return prefetch(static_cast<const uint16_t*>(values) + at, count);
  prefetch(static_cast<const uint8_t*>(values) + at, count);
}

// `count` numbers from `at` on.
template <class Isa, Number TYPE>
void fill_some(const void* values, int64_t at, int64_t count, float* to) {
  prefetch_numbers<TYPE>(values, at + count, count);  // of the next tile
  int64_t i = 0;
  for (; i + Isa::kRows <= count; i += Isa::kRows) Isa::store(to + i, Isa::template numbers<TYPE>(values, at + i));
  for (; i < count; ++i) to[i] = number<TYPE>(values, at + i);
}

// The same for a type that is known when it runs.
template <class Isa>
void fill(Number type, const void* values, int64_t at, int64_t count, float* to) {
  switch (type) {
    case Number::Float32: return fill_some<Isa, Number::Float32>(values, at, count, to);
    case Number::Float16: return fill_some<Isa, Number::Float16>(values, at, count, to);
    case Number::Bfloat16: return fill_some<Isa, Number::Bfloat16>(values, at, count, to);
    case Number::Unsigned8: return fill_some<Isa, Number::Unsigned8>(values, at, count, to);
    case Number::Signed8: return fill_some<Isa, Number::Signed8>(values, at, count, to);
    case Number::LowNibble: return fill_some<Isa, Number::LowNibble>(values, at, count, to);
    case Number::HighNibble: return fill_some<Isa, Number::HighNibble>(values, at, count, to);
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

// Steps and shifts of a tile, [groups] each, where all its rows share them.
template <class Isa>
void shared_levels(const Statistic& s, int64_t tile, int64_t groups, float* steps, float* shifts) {
  const int64_t first = tile * kTileRows / s.level_rows * groups;
  fill<Isa>(s.level_type, s.step, first, groups, steps);
  fill<Isa>(s.level_type, s.shift, first, groups, shifts);
}

// (code - shift) * step with those.
template <class Isa>
void apply_tiles(const Statistic& s, int64_t tile, int64_t groups, float* levels, float* to) {
  shared_levels<Isa>(s, tile, groups, levels, levels + groups);
  for (int64_t group = 0; group < groups; ++group) {
    const auto step = Isa::broadcast(levels[group]), shift = Isa::broadcast(levels[groups + group]);
    for (int v = 0; v < Isa::kVectors; ++v, to += Isa::kRows)
      Isa::store(to, Isa::multiply(Isa::subtract(Isa::real_load(to), shift), step));
  }
}

// A statistic of a tile, [groups, 16].
template <class Isa>
void statistic_of(const Statistic& s, int64_t tile, int64_t groups, float* levels, float* to) {
  fill<Isa>(s.type, s.values, tile * groups * kTileRows, groups * kTileRows, to);
  if (s.level_type == Number::None) return;
  if (s.level_rows > 0) return apply_tiles<Isa>(s, tile, groups, levels, to);
  if (s.level_type == Number::Float16) apply_rows<Isa, Number::Float16>(s, tile, groups, to);
  if (s.level_type == Number::Bfloat16) apply_rows<Isa, Number::Bfloat16>(s, tile, groups, to);
  if (s.level_type == Number::Float32) apply_rows<Isa, Number::Float32>(s, tile, groups, to);
}

// Scales of a tile, and its zero points as they are stored; without zero points those stay as they are.
template <class Isa>
void tile_statistics(const Matrix& m, const Tile& tile) {
  statistic_of<Isa>(m.scale, tile.number, m.groups, tile.levels, tile.scales);
  if (m.zero.type != Number::None) statistic_of<Isa>(m.zero, tile.number, m.groups, tile.levels, tile.zeros);
}

// What products want of a tile (product.h): nothing, its levels, or its scales and, for the stored zero points, the values
// of the middle codes.
template <class Isa>
void product_statistics(const Matrix& m, const Tile& tile) {
  const Read read = read_of<Isa>(m);
  if (read == Read::SuperBlocks) return;
  if (read == Read::Nibbles) {
    shared_levels<Isa>(m.scale, tile.number, m.groups, tile.levels, tile.levels + m.groups);
    float* zeros = tile.levels + 2 * m.groups;
    shared_levels<Isa>(m.zero, tile.number, m.groups, zeros, zeros + m.groups);
    for (int64_t i = 0; i < m.groups; ++i) zeros[i] = -zeros[i];  // they are subtracted
    return;
  }
  tile_statistics<Isa>(m, tile);
  if (m.zero.type == Number::None) return;
  const auto middle = Isa::broadcast(static_cast<float>(1 << (m.bits - 1)));
  for (int64_t i = 0; i < m.groups * kTileRows; i += Isa::kRows) {
    const auto scale = Isa::real_load(tile.scales + i), zero = Isa::real_load(tile.zeros + i);
    Isa::store(tile.zeros + i,
               m.minima ? Isa::fma(scale, middle, zero) : Isa::multiply(scale, Isa::subtract(middle, zero)));
  }
}

}  // namespace
}  // namespace roundel
