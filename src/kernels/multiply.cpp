#include "multiply.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "prefetch.h"
#include "threads.h"

namespace roundel {
namespace {

// A task should be long beside the taking of it, and tasks many beside the threads.
constexpr int64_t kTaskCodes = 1 << 18;

// Memory of several tokens' activations.
class Batch {
 public:
  Batch(const Matrix& m, int64_t tokens, Digits digits) : digits_(digits), tokens_(tokens) {
    const int64_t stream = stream_bytes(m, digits), kept = m.outliers.starts ? m.columns : 0;
    const int64_t floats = blocks(m) + m.groups + kept;
    streams_.resize(tokens * stream);
    floats_.resize(tokens * floats);
    wide_.resize(tokens * blocks(m));
    for (int64_t t = 0; t < tokens; ++t) {
      float* at = floats_.data() + t * floats;
      float* values = kept ? at + blocks(m) + m.groups : nullptr;
      of_.push_back({digits, streams_.data() + t * stream, wide_.data() + t * blocks(m), at, at + blocks(m), values});
    }
  }
  const Activations& operator[](int64_t token) const { return of_[token]; }
  const Activations* at(int64_t token) const { return of_.data() + token; }
  int64_t tokens() const { return tokens_; }
  Digits digits() const { return digits_; }

 private:
  Digits digits_;
  int64_t tokens_;
  std::vector<int8_t> streams_;
  std::vector<uint8_t> wide_;
  std::vector<float> floats_;
  std::vector<Activations> of_;
};

// Where the outliers of the next tile are; there, its own end.
void point_to_next_outliers(const Matrix& m, Tile& tile) {
  const Outliers& o = m.outliers;
  if (o.starts == nullptr) return;
  const int64_t begin = std::min((tile.number + 1) * kTileRows, m.rows), end = std::min(begin + kTileRows, m.rows);
  const int64_t first = o.starts[begin], size = o.wide ? sizeof(int32_t) : sizeof(uint16_t);
  tile.next_columns = static_cast<const uint8_t*>(o.columns) + first * size;
  tile.next_values = reinterpret_cast<const uint8_t*>(o.values + first);
  tile.next_lines = (o.starts[end] - first) * size / kCacheLine + 1;
}

// With memory for a tile's statistics, which each thread keeps.
Tile tile_of(const Matrix& m, int64_t number) {
  thread_local std::vector<float> kept;
  const size_t size = static_cast<size_t>(m.groups) * kTileRows, levels = 4 * static_cast<size_t>(m.groups);
  if (kept.size() < 2 * size + levels) kept.resize(2 * size + levels);
  Tile tile{number, kept.data(), kept.data() + size, kept.data() + 2 * size, nullptr, nullptr, 0};
  point_to_next_outliers(m, tile);
  return tile;
}

Tile stored_tile(const Matrix& m, int64_t number, const InstructionSet& with) {
  const Tile tile = tile_of(m, number);
  with.stored_statistics(m, tile);
  return tile;
}

void multiply_tiles(const Matrix& m, const Batch& x, float* y, int threads, const InstructionSet& with) {
  const int64_t per_tile = m.chunks * kChunkColumns * kTileRows;
  const int64_t step = std::max<int64_t>(1, kTaskCodes / per_tile), count = (tiles(m) + step - 1) / step;
  Product of[5] = {};
  for (int tokens : {1, 2, 4}) of[tokens] = with.product(m, x.digits(), tokens);
  const int most = std::min(with.most_tokens, x.digits().least == 1 ? 4 : 2);

  parallel(count, threads, [&](int64_t task) {
    float found[4][kTileRows];
    const int64_t end = std::min((task + 1) * step, tiles(m));
    for (int64_t number = task * step; number < end; ++number) {
      const Tile tile = tile_of(m, number);
      with.product_statistics(m, tile);
      const int64_t first = number * kTileRows, rows = std::min<int64_t>(kTileRows, m.rows - first);
      int64_t token = 0;
      while (token < x.tokens()) {
        int tokens = most;
        while (tokens > x.tokens() - token) tokens /= 2;
        of[tokens](m, tile, x.at(token), found);
        for (int c = 0; c < tokens; ++c, ++token) {
          if (m.outliers.starts != nullptr) with.add_outliers(m, number, x[token].values, found[c]);
          std::copy_n(found[c], rows, y + token * m.rows + first);
        }
      }
    }
  });
}

}  // namespace

bool multiply(const Matrix& m, const float* x, int64_t tokens, Mode mode, float* y, int threads,
              const InstructionSet& with) {
  const Batch batch(m, tokens, digits_of(mode, m.bits));
  std::atomic<bool> finite{true};
  parallel(tokens, threads, [&](int64_t token) {
    if (!with.round(m, x + token * m.columns, batch[token])) finite = false;
  });
  if (!finite) return false;
  multiply_tiles(m, batch, y, threads, with);
  return true;
}

void multiply_integers(const Matrix& m, const int8_t* x, int64_t tokens, const float* scales, const float* zeros,
                       const float* row_sums, float* y, int threads, const InstructionSet& with) {
  const Batch batch(m, tokens, kIntegers);
  parallel(tokens, threads,
           [&](int64_t token) { with.take(m, x + token * m.columns, batch[token]); });
  multiply_tiles(m, batch, y, threads, with);
  for (int64_t token = 0; token < tokens; ++token) {
    float* of = y + token * m.rows;
    for (int64_t row = 0; row < m.rows; ++row) of[row] = scales[token] * (of[row] - zeros[token] * row_sums[row]);
  }
}

void decode(const Matrix& m, int64_t first, int64_t last, float* to, int threads, const InstructionSet& with) {
  const int64_t begin = first / kTileRows, count = last > first ? (last + kTileRows - 1) / kTileRows - begin : 0;
  parallel(count, threads, [&](int64_t task) {
    const Tile tile = stored_tile(m, begin + task, with);
    const int64_t from = std::max(first, tile.number * kTileRows), end = std::min(last, (tile.number + 1) * kTileRows);
    with.decode(m, tile, from, end, to + (from - first) * m.columns, m.columns);
  });
}

void lookup(const Matrix& m, const int64_t* rows, int64_t count, float* to, int threads, const InstructionSet& with) {
  parallel(count, threads, [&](int64_t i) {
    with.decode(m, stored_tile(m, rows[i] / kTileRows, with), rows[i], rows[i] + 1, to + i * m.columns, m.columns);
  });
}

}  // namespace roundel
