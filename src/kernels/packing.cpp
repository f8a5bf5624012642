#include "packing.h"

#include <algorithm>

#include "threads.h"

namespace roundel {
namespace {

using Chunk = uint8_t[kChunkUnits][kUnitBytes];

// One plane: bits PLACE to PLACE + width of every code.
uint8_t* write_plane(const Chunk& q, int width, int place, uint8_t* to) {
  const int mask = (1 << width) - 1, fields = 8 / width;
  for (int vector = 0; vector < width; ++vector, to += kUnitBytes) {
    for (int i = 0; i < kUnitBytes; ++i) {
      int byte = 0;
      for (int f = 0; f < fields; ++f) byte |= ((q[vector * fields + f][i] >> place) & mask) << (f * width);
      if (width == 3) {
        const int last = ((q[6][i] >> place) & 7) | ((q[7][i] >> place) & 7) << 3;
        byte |= ((last >> (2 * vector)) & 3) << 6;
      }
      to[i] = static_cast<uint8_t>(byte);
    }
  }
  return to;
}

void read_chunk(const Matrix& m, const uint8_t* codes, int64_t rows, int64_t chunk, Chunk& q) {
  const int of_chunk = kChunkUnits / m.block_units;
  std::fill_n(&q[0][0], sizeof q, uint8_t{0});
  for (int b = 0; b < of_chunk; ++b) {
    const Span span = span_of(m, chunk * of_chunk + b);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t k = 0; k < span.end - span.begin; ++k)
        q[b * m.block_units + k / kUnitColumns][r * kUnitColumns + k % kUnitColumns] = codes[r * m.columns + span.begin + k];
  }
}

}  // namespace

void pack(const Matrix& m, const uint8_t* codes, int64_t first, int64_t last, uint8_t* to, int threads) {
  const int64_t begin = first / kTileRows, count = (last - first + kTileRows - 1) / kTileRows;
  parallel(count, threads, [&](int64_t task) {
    const int64_t row = first + task * kTileRows, rows = std::min<int64_t>(kTileRows, last - row);
    uint8_t* at = to + (begin + task) * m.chunks * kUnitBytes * m.bits;
    Chunk q;
    for (int64_t chunk = 0; chunk < m.chunks; ++chunk) {
      read_chunk(m, codes + (row - first) * m.columns, rows, chunk, q);
      const int low = std::min(m.bits, 4);
      at = write_plane(q, low, 0, at);
      if (m.bits > 4) at = write_plane(q, m.bits - 4, 4, at);
    }
  });
}

}  // namespace roundel
