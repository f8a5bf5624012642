// Weights as floats: a tile of 16 rows, its columns in the order of the codes.
#pragma once

#include "product.h"

namespace roundel {
namespace {

// Codes of a chunk, [units, 16, 4].
template <int BITS>
inline void add_part(const uint8_t* codes, int to, uint8_t* q) {
  if constexpr (BITS == 3) {
    for (int i = 0; i < kUnitBytes; ++i) {
      const uint8_t low = codes[i], next = codes[kUnitBytes + i], top = codes[2 * kUnitBytes + i];
      const int last = low >> 6 | (next >> 6) << 2 | (top >> 6) << 4;
      const int found[kChunkUnits] = {low, low >> 3, next, next >> 3, top, top >> 3, last, last >> 3};
      for (int u = 0; u < kChunkUnits; ++u) q[u * kUnitBytes + i] |= static_cast<uint8_t>((found[u] & 7) << to);
    }
  } else if constexpr (BITS > 0) {
    constexpr int kFields = 8 / BITS;
    for (int u = 0; u < kChunkUnits; ++u) {
      const uint8_t* bytes = codes + (u / kFields) * kUnitBytes;
      const int from = BITS * (u % kFields);
      for (int i = 0; i < kUnitBytes; ++i)
        q[u * kUnitBytes + i] |= static_cast<uint8_t>(((bytes[i] >> from) & ((1 << BITS) - 1)) << to);
    }
  }
}

template <int BITS>
inline void unpack_chunk(const uint8_t* codes, uint8_t* q) {
  for (int i = 0; i < kChunkUnits * kUnitBytes; ++i) q[i] = 0;
  add_part<low_bits(BITS)>(codes, 0, q);
  add_part<high_bits(BITS)>(codes + low_bits(BITS) * kUnitBytes, 4, q);
}

inline void unpack_chunk(int bits, const uint8_t* codes, uint8_t* q) {
  switch (bits) {
    case 2: return unpack_chunk<2>(codes, q);
    case 3: return unpack_chunk<3>(codes, q);
    case 4: return unpack_chunk<4>(codes, q);
    case 5: return unpack_chunk<5>(codes, q);
    case 6: return unpack_chunk<6>(codes, q);
    case 7: return unpack_chunk<7>(codes, q);
    default: return unpack_chunk<8>(codes, q);
  }
}

inline void add_outliers(const Matrix& m, int64_t row, float* weights) {
  const Outliers& o = m.outliers;
  if (o.starts == nullptr) return;
  for (int32_t i = o.starts[row]; i < o.starts[row + 1]; ++i) {
    const int64_t column = o.wide ? static_cast<const int32_t*>(o.columns)[i] : static_cast<const uint16_t*>(o.columns)[i];
    weights[column] += from_float16(o.values[i]);
  }
}

// `to`: [rows, stride]; rows FIRST to LAST of the matrix, which lie in the tile, whose zeros are as they are stored.
template <class Isa>
void decode_tile(const Matrix& m, const Tile& tile, int64_t first, int64_t last, float* to, int64_t stride) {
  uint8_t q[kChunkUnits * kUnitBytes];
  const int blocks = kChunkUnits / m.block_units;
  const uint8_t* codes = m.codes + tile.number * m.chunks * kUnitBytes * m.bits;
  for (int64_t chunk = 0, block = 0; chunk < m.chunks; ++chunk, codes += kUnitBytes * m.bits) {
    unpack_chunk(m.bits, codes, q);
    for (int b = 0; b < blocks; ++b, ++block) {
      const Span span = span_of(m, block);
      for (int64_t row = first; row < last; ++row) {
        const int64_t r = row - tile.number * kTileRows, at = span.group * kTileRows + r;
        const float scale = tile.scales[at];
        const float zero = m.zero.type == Number::None ? static_cast<float>(1 << (m.bits - 1)) : tile.zeros[at];
        const uint8_t* from = q + b * m.block_units * kUnitBytes + r * kUnitColumns;
        float* weights = to + (row - first) * stride + span.begin;
        // As QuantizedWeight.dequantize computes it, in the same order: the same floats.
        for (int64_t k = 0; k < span.end - span.begin; ++k) {
          const float code = from[k / kUnitColumns * kUnitBytes + k % kUnitColumns];
          weights[k] = m.minima ? code * scale + zero : (code - zero) * scale;
        }
      }
    }
  }
  for (int64_t row = first; row < last; ++row) add_outliers(m, row, to + (row - first) * stride);
}

}  // namespace
}  // namespace roundel
