// One tile of 16 rows times the activations of a few tokens: the loop that every instruction set shares.
//
// Of a row r and a token, with codes q that count from their middle, and integer activations x of blocks b:
//
//     y[r] = sum over groups g of  scale[r, g] * (sum over b in g of  a[b] * D[r, b])  +  centre[r, g] * X[g]
//     D[r, b] = sum over columns of q * x      exact, in integers
//     X[g]    = sum over columns of a * x
//
// where the centre is the value of the middle code, zero on a symmetric grid.
//
// An instruction set is a struct, `Isa`, with
//
//     kVectors           vectors of kVectorBytes in a unit, of kRows rows each
//     kMostTokens        4, 2 or 1: tokens whose sums the registers hold
//     kStart             how sums start (activations.h)
//     Bytes, Sum, Real   vectors: of codes, of sums of products, of floats, one for each row
//     load, field        codes of a unit out of a plane, moved up where they are the high bits of a part
//     start, dot         sums begin and grow: 4 products for every row
//     total              the sums of one part, or of the low and the high part of codes above 4 bits, as floats
//     broadcast, fma, ... on floats
//     kTableBits         codes of scales that `table` and `pick` have values for, `indexes` of them, and `upper` nibbles
//     gather, first      activations of some columns, and the first few of a vector's numbers (outliers.h)
#pragma once

#include "instruction_sets.h"
#include "prefetch.h"

namespace roundel {
namespace {

// Codes above 4 bits are two parts, of 4 bits and of the rest: products of parts can be summed in 16 bits for a block.
constexpr int low_bits(int bits) { return bits <= 4 ? bits : 4; }
constexpr int high_bits(int bits) { return bits <= 4 ? 0 : bits - 4; }

// The vectors of unit U of a part of `BITS` bits, whose planes begin at `codes`.
template <class Isa, int BITS, int U>
inline typename Isa::Bytes part(const uint8_t* codes, int vector) {
  constexpr int kStep = Isa::kVectorBytes;
  if constexpr (BITS == 3 && U < 6) {
    return Isa::template field<3 * (U % 2), 3, 0>(Isa::load(codes + (U / 2) * kUnitBytes + vector * kStep));
  } else if constexpr (BITS == 3) {
    const uint8_t* from = codes + vector * kStep;
    const auto low = Isa::template field<6, 2, 0>(Isa::load(from));
    const auto next = Isa::template field<6, 2, 2>(Isa::load(from + kUnitBytes));
    const auto top = Isa::template field<6, 2, 4>(Isa::load(from + 2 * kUnitBytes));
    return Isa::template field<3 * (U % 2), 3, 0>(Isa::either(Isa::either(low, next), top));
  } else {
    constexpr int kFields = 8 / BITS;
    const auto bytes = Isa::load(codes + (U / kFields) * kUnitBytes + vector * kStep);
    return Isa::template field<BITS * (U % kFields), BITS, 0>(bytes);
  }
}

// How a product reads a tile's statistics: as floats that were made of them before, or as they are stored.
enum class Read {
  Floats,
  Nibbles,      // Isa looks scales and zero points of a group up in tables of the values that its 16 rows may have
  SuperBlocks,  // groups are summed by their codes, super-blocks by their steps
};

template <class Isa, int COUNT>
struct Work {
  typename Isa::Real sum[COUNT][Isa::kVectors];
  typename Isa::Real group[COUNT][Isa::kVectors];
  // Of a super-block: by codes of scales, and of minima.
  typename Isa::Real scaled[COUNT][Isa::kVectors], offset[COUNT][Isa::kVectors];
};

// STRIDE: digits that a unit has in the streams, of which DIGITS are read.
template <class Isa, int BITS, int DIGITS, int STRIDE, int COUNT, int UNIT, int LAST>
inline __attribute__((always_inline)) void add_units(const uint8_t* codes, const int8_t* const* at,
                                                     typename Isa::Sum (*low)[DIGITS][Isa::kVectors],
                                                     typename Isa::Sum (*high)[DIGITS][Isa::kVectors], int first) {
  if constexpr (UNIT < LAST) {
    constexpr int kLow = low_bits(BITS), kHigh = high_bits(BITS);
    for (int v = 0; v < Isa::kVectors; ++v) {
      const auto l = part<Isa, kLow, UNIT>(codes, v);
      typename Isa::Bytes h = l;
      if constexpr (kHigh > 0) h = part<Isa, kHigh, UNIT>(codes + kLow * kUnitBytes, v);
      for (int c = 0; c < COUNT; ++c) {
        for (int d = 0; d < DIGITS; ++d) {
          const int8_t* four = at[c] + 4 * ((UNIT - first) * STRIDE + d);
          low[c][d][v] = Isa::dot(low[c][d][v], l, four);
          if constexpr (kHigh > 0) high[c][d][v] = Isa::dot(high[c][d][v], h, four);
        }
      }
    }
    add_units<Isa, BITS, DIGITS, STRIDE, COUNT, UNIT + 1, LAST>(codes, at, low, high, first);
  }
}

// A block: units FIRST to LAST of a chunk, the first of its group or a later one. Moves the streams of activations on.
template <class Isa, int BITS, int DIGITS, int STRIDE, int COUNT, int FIRST, int LAST>
inline __attribute__((always_inline)) void add_digits(const uint8_t* codes, const int8_t** streams, const float* const* scales,
                                                      int64_t block, bool first, Work<Isa, COUNT>& work) {
  constexpr int V = Isa::kVectors;
  typename Isa::Sum low[COUNT][DIGITS][V], high[COUNT][DIGITS][V];
  const int8_t* at[COUNT];
  prefetch(codes + kAhead, kUnitBytes * BITS * (LAST - FIRST) / kChunkUnits);
  for (int c = 0; c < COUNT; ++c) {
    for (int d = 0; d < DIGITS; ++d) {
      for (int v = 0; v < V; ++v) {
        const auto start = Isa::start(streams[c] + 4 * d);
        low[c][d][v] = high_bits(BITS) ? Isa::nothing() : start;
        high[c][d][v] = start;
      }
    }
    at[c] = streams[c] + 4 * STRIDE;
  }
  add_units<Isa, BITS, DIGITS, STRIDE, COUNT, FIRST, LAST>(codes, at, low, high, FIRST);
  for (int c = 0; c < COUNT; ++c) {
    const auto scale = Isa::broadcast(scales[c][block]);
    for (int v = 0; v < V; ++v) {
      typename Isa::Real total[DIGITS];
      for (int d = 0; d < DIGITS; ++d) {
        if constexpr (high_bits(BITS) > 0) {
          total[d] = Isa::total(low[c][d][v], high[c][d][v]);
        } else {
          total[d] = Isa::total(low[c][d][v]);
        }
      }
      auto all = total[DIGITS - 1];
      for (int d = DIGITS - 2; d >= 0; --d) all = Isa::fma(all, Isa::broadcast(kBase), total[d]);
      work.group[c][v] = first ? Isa::multiply(all, scale) : Isa::fma(all, scale, work.group[c][v]);
    }
    streams[c] = at[c] + 4 * STRIDE * (LAST - FIRST);
  }
}

// A digit that another token of the same call makes us read is zero: a token alone gets the same bits.
template <class Isa, int BITS, int LEAST, int MOST, int COUNT, int FIRST, int LAST>
inline __attribute__((always_inline)) void add_block(const uint8_t* codes, const int8_t** streams, const float* const* scales,
                                                     const uint8_t* const* wide, int64_t block, bool first,
                                                     Work<Isa, COUNT>& work) {
  if constexpr (LEAST < MOST) {
    uint8_t any = 0;
    for (int c = 0; c < COUNT; ++c) any |= wide[c][block];
    if (any == 0) return add_digits<Isa, BITS, LEAST, MOST, COUNT, FIRST, LAST>(codes, streams, scales, block, first, work);
  }
  add_digits<Isa, BITS, MOST, MOST, COUNT, FIRST, LAST>(codes, streams, scales, block, first, work);
}

// GGUF's K types have groups of 32 columns at 4 and 5 bits, of 16 at other widths.
constexpr int super_block_units(int bits) { return bits == 4 || bits == 5 ? 8 : 4; }

template <class Isa>
inline Read read_of(const Matrix& m) {
  if (in_shared_nibbles(m) && m.level_bits <= Isa::kTableBits && m.block_units == 4 && m.bits <= 4) return Read::Nibbles;
  if (in_super_blocks(m) && m.bits <= 6 && m.block_units == super_block_units(m.bits)) return Read::SuperBlocks;
  return Read::Floats;
}

template <class Isa, int COUNT>
inline __attribute__((always_inline)) void end_of_floats(const Matrix& m, int64_t group, const Tile& tile,
                                                         const float* const* group_sums, Work<Isa, COUNT>& work) {
  for (int v = 0; v < Isa::kVectors; ++v) {
    const int64_t at = group * kTileRows + v * Isa::kRows;
    const auto scale = Isa::real_load(tile.scales + at);
    for (int c = 0; c < COUNT; ++c) work.sum[c][v] = Isa::fma(scale, work.group[c][v], work.sum[c][v]);
    if (m.zero.type != Number::None) {
      const auto centre = Isa::real_load(tile.zeros + at);
      for (int c = 0; c < COUNT; ++c)
        work.sum[c][v] = Isa::fma(centre, Isa::broadcast(group_sums[c][group]), work.sum[c][v]);
    }
  }
}

template <class Isa, int COUNT>
inline __attribute__((always_inline)) void end_of_nibbles(const Matrix& m, int64_t group, const Tile& tile,
                                                          const float* const* group_sums, Work<Isa, COUNT>& work) {
  const float* levels = tile.levels + group;
  const auto middle = static_cast<float>(1 << (m.bits - 1));
  const auto scales = Isa::table(levels[0], levels[m.groups], 0);
  // What a group's activations meet beside the codes: the middle code less the zero point.
  const auto centres = Isa::table(levels[2 * m.groups], levels[3 * m.groups], middle);
  const auto* codes = static_cast<const uint8_t*>(m.scale.values) + (tile.number * m.groups + group) * kTileRows;
  prefetch(codes + kAhead, kTileRows);
  for (int v = 0; v < Isa::kVectors; ++v) {
    const auto nibbles = Isa::indexes(codes + v * Isa::kRows);
    const auto scale = Isa::pick(scales, nibbles), centre = Isa::pick(centres, Isa::upper(nibbles));
    for (int c = 0; c < COUNT; ++c) {
      const auto sum = Isa::fma(centre, Isa::broadcast(group_sums[c][group]), work.group[c][v]);
      work.sum[c][v] = Isa::fma(scale, sum, work.sum[c][v]);
    }
  }
}

// Codes of a statistic, from AT on, as floats.
template <class Isa>
inline typename Isa::Real codes_of(const Statistic& s, int64_t at) {
  prefetch(static_cast<const uint8_t*>(s.values) + at + kAhead, Isa::kRows);
  return s.type == Number::Signed8 ? Isa::template numbers<Number::Signed8>(s.values, at)
                                   : Isa::template numbers<Number::Unsigned8>(s.values, at);
}

template <class Isa, int COUNT, int UNITS>
inline __attribute__((always_inline)) void end_of_block_group(const Matrix& m, int64_t group, const Tile& tile,
                                                              const float* const* group_sums, Work<Isa, COUNT>& work) {
  constexpr int64_t kGroups = kSuperUnits / UNITS;
  const auto middle = Isa::broadcast(static_cast<float>(1 << (m.bits - 1)));
  const int64_t codes = (tile.number * m.groups + group) * kTileRows;
  const int64_t steps = (tile.number * m.groups + group) / kGroups * kTileRows;
  for (int v = 0; v < Isa::kVectors; ++v) {
    const int64_t row = v * Isa::kRows;
    const auto scale = codes_of<Isa>(m.scale, codes + row);
    for (int c = 0; c < COUNT; ++c) {
      auto sum = work.group[c][v];
      if (m.minima) sum = Isa::fma(middle, Isa::broadcast(group_sums[c][group]), sum);
      work.scaled[c][v] = Isa::fma(scale, sum, work.scaled[c][v]);
    }
    if (m.minima) {
      const auto minimum = codes_of<Isa>(m.zero, codes + row);
      for (int c = 0; c < COUNT; ++c)
        work.offset[c][v] = Isa::fma(minimum, Isa::broadcast(group_sums[c][group]), work.offset[c][v]);
    }
    if (group % kGroups == kGroups - 1) {
      const auto step = Isa::template numbers<Number::Float16>(m.scale.step, steps + row);
      for (int c = 0; c < COUNT; ++c) {
        work.sum[c][v] = Isa::fma(step, work.scaled[c][v], work.sum[c][v]);
        work.scaled[c][v] = Isa::real_zero();
      }
      if (m.minima) {
        const auto of_minima = Isa::template numbers<Number::Float16>(m.zero.step, steps + row);
        for (int c = 0; c < COUNT; ++c) {
          work.sum[c][v] = Isa::fma(of_minima, work.offset[c][v], work.sum[c][v]);
          work.offset[c][v] = Isa::real_zero();
        }
      }
    }
  }
}

template <class Isa, int COUNT, int UNITS, Read READ>
inline __attribute__((always_inline)) void end_group(const Matrix& m, int64_t group, const Tile& tile,
                                                     const float* const* group_sums, Work<Isa, COUNT>& work) {
  if constexpr (READ == Read::Floats) end_of_floats<Isa, COUNT>(m, group, tile, group_sums, work);
  if constexpr (READ == Read::Nibbles) end_of_nibbles<Isa, COUNT>(m, group, tile, group_sums, work);
  if constexpr (READ == Read::SuperBlocks) end_of_block_group<Isa, COUNT, UNITS>(m, group, tile, group_sums, work);
}

// A line of the next tile's outliers with every chunk: all at once would have to wait for each other.
inline void prefetch_outliers(const Tile& tile, int64_t chunk) {
  if (chunk >= tile.next_lines) return;
  prefetch(tile.next_columns + chunk * kCacheLine, 1);
  prefetch(tile.next_values + chunk * kCacheLine, 1);
}

template <class Isa, int BITS, int LEAST, int MOST, int COUNT, int UNITS, Read READ>
void multiply_tile(const Matrix& m, const Tile& tile, const Activations* x, float (*y)[kTileRows]) {
  constexpr int kBlocks = kChunkUnits / UNITS;
  Work<Isa, COUNT> work;
  const int8_t* streams[COUNT];
  const uint8_t* wide[COUNT];
  const float* scales[COUNT];
  const float* group_sums[COUNT];
  for (int c = 0; c < COUNT; ++c) {
    streams[c] = x[c].stream;
    wide[c] = x[c].wide;
    scales[c] = x[c].scales;
    group_sums[c] = x[c].group_sums;
    for (int v = 0; v < Isa::kVectors; ++v)
      work.sum[c][v] = work.group[c][v] = work.scaled[c][v] = work.offset[c][v] = Isa::real_zero();
  }
  const uint8_t* codes = m.codes + tile.number * m.chunks * kUnitBytes * BITS;
  if constexpr (UNITS == kChunkUnits) {
    const int64_t of_group = group_blocks(m);
    for (int64_t group = 0, block = 0; group < m.groups; ++group) {
      const int64_t left = m.chunks - block, chunks = of_group < left ? of_group : left;
      for (int64_t i = 0; i < chunks; ++i, ++block, codes += kUnitBytes * BITS) {
        prefetch_outliers(tile, block);
        add_block<Isa, BITS, LEAST, MOST, COUNT, 0, kChunkUnits>(codes, streams, scales, wide, block, i == 0, work);
      }
      end_group<Isa, COUNT, UNITS, READ>(m, group, tile, group_sums, work);
    }
  } else {
    for (int64_t chunk = 0; chunk < m.chunks; ++chunk, codes += kUnitBytes * BITS) {
      prefetch_outliers(tile, chunk);
      const int64_t first = chunk * kBlocks;
      add_block<Isa, BITS, LEAST, MOST, COUNT, 0, UNITS>(codes, streams, scales, wide, first, true, work);
      end_group<Isa, COUNT, UNITS, READ>(m, first, tile, group_sums, work);
      add_block<Isa, BITS, LEAST, MOST, COUNT, UNITS, 2 * UNITS>(codes, streams, scales, wide, first + 1, true, work);
      end_group<Isa, COUNT, UNITS, READ>(m, first + 1, tile, group_sums, work);
      if constexpr (UNITS == 2) {
        add_block<Isa, BITS, LEAST, MOST, COUNT, 4, 6>(codes, streams, scales, wide, first + 2, true, work);
        end_group<Isa, COUNT, UNITS, READ>(m, first + 2, tile, group_sums, work);
        add_block<Isa, BITS, LEAST, MOST, COUNT, 6, 8>(codes, streams, scales, wide, first + 3, true, work);
        end_group<Isa, COUNT, UNITS, READ>(m, first + 3, tile, group_sums, work);
      }
    }
  }
  for (int c = 0; c < COUNT; ++c)
    for (int v = 0; v < Isa::kVectors; ++v) Isa::store(y[c] + v * Isa::kRows, work.sum[c][v]);
}

// The same for arguments that are known when it runs: `count` tokens at once.
template <class Isa, int BITS, int LEAST, int MOST, int COUNT>
Product with_units(const Matrix& m) {
  const Read read = read_of<Isa>(m);
  if constexpr (BITS <= 4) {
    if (read == Read::Nibbles) return multiply_tile<Isa, BITS, LEAST, MOST, COUNT, 4, Read::Nibbles>;
  }
  if constexpr (BITS <= 6) {
    if (read == Read::SuperBlocks)
      return multiply_tile<Isa, BITS, LEAST, MOST, COUNT, super_block_units(BITS), Read::SuperBlocks>;
  }
  if (m.block_units == 8) return multiply_tile<Isa, BITS, LEAST, MOST, COUNT, 8, Read::Floats>;
  if (m.block_units == 4) return multiply_tile<Isa, BITS, LEAST, MOST, COUNT, 4, Read::Floats>;
  return multiply_tile<Isa, BITS, LEAST, MOST, COUNT, 2, Read::Floats>;
}

template <class Isa, int BITS, int LEAST, int MOST>
Product with_count(const Matrix& m, int count) {
  if constexpr (Isa::kMostTokens >= 4 && LEAST == 1) {
    if (count == 4) return with_units<Isa, BITS, LEAST, MOST, 4>(m);
  }
  if constexpr (Isa::kMostTokens >= 2) {
    if (count == 2) return with_units<Isa, BITS, LEAST, MOST, 2>(m);
  }
  return with_units<Isa, BITS, LEAST, MOST, 1>(m);
}

template <class Isa, int BITS>
Product with_digits(const Matrix& m, Digits digits, int count) {
  constexpr Digits kFast = digits_of(Mode::Fast, BITS), kExact = digits_of(Mode::Exact, BITS);
  if (digits.most == kExact.most) return with_count<Isa, BITS, kExact.least, kExact.most>(m, count);
  if (digits.most == kFast.most) return with_count<Isa, BITS, kFast.least, kFast.most>(m, count);
  return with_count<Isa, BITS, kIntegers.least, kIntegers.most>(m, count);
}

template <class Isa>
Product product_of(const Matrix& m, Digits digits, int count) {
  switch (m.bits) {
    case 2: return with_digits<Isa, 2>(m, digits, count);
    case 3: return with_digits<Isa, 3>(m, digits, count);
    case 4: return with_digits<Isa, 4>(m, digits, count);
    case 5: return with_digits<Isa, 5>(m, digits, count);
    case 6: return with_digits<Isa, 6>(m, digits, count);
    case 7: return with_digits<Isa, 7>(m, digits, count);
    default: return with_digits<Isa, 8>(m, digits, count);
  }
}

}  // namespace
}  // namespace roundel
