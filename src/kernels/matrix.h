// A quantized weight as the kernels read it. `roundel/runtime/layout.py` makes it and says what every number means.
//
// Rows come in tiles of 16, columns in units of 4: the 64 codes of a unit lie next to each other, row after row, so that
// one vector holds 4 neighbouring columns of several rows, and four activations, repeated, are its factors. Nothing
// is ever summed across a vector.
//
// Codes of 8 units (a chunk, 32 columns) are stored together in planes of 4, 3, 2 or 1 bits: a plane of w bits takes w
// times 64 bytes, and byte vector i holds units i * 8/w, i * 8/w + 1, ... in its fields from the low bits up. Of 3 bits
// it holds units 2 i and 2 i + 1, and above them two bits of units 6 and 7.
#pragma once

#include <cstdint>

namespace roundel {

constexpr int kTileRows = 16;
constexpr int kUnitColumns = 4;
constexpr int kChunkUnits = 8;
constexpr int kChunkColumns = kUnitColumns * kChunkUnits;
constexpr int kUnitBytes = kTileRows * kUnitColumns;

enum class Number : int32_t { None, Float32, Float16, Bfloat16, Unsigned8, Signed8, LowNibble, HighNibble };

// One number for every row and group: [tiles, groups, 16]. On a second level it is (number - shift) * step.
struct Statistic {
  Number type;
  const void* values;
  Number level_type;      // None: there is no second level
  const void* step;       // [row tiles of the level, groups], or [tiles, groups / level_groups, 16]
  const void* shift;      // as `step`, or null
  int64_t level_rows;     // rows that share a step, a multiple of 16; 0: every row has its own, shared by
  int64_t level_groups;   // so many neighbouring groups
};

struct Outliers {
  const int32_t* starts;    // [rows + 1]; null: there are none
  const void* columns;      // uint16 or int32
  const uint16_t* values;   // fp16 bits
  bool wide;                // columns are int32
};

struct Matrix {
  int64_t rows;
  int64_t columns;
  int32_t bits;
  int64_t group;         // columns of a group
  int32_t block_units;   // 8, 4 or 2: what shares a scale of the activations
  int64_t groups;        // with those of the padding
  int64_t chunks;
  bool minima;           // `zero` holds the values of code 0, not the code of value 0
  const uint8_t* codes;  // [tiles, chunks, 64 * bits]
  Statistic scale;
  Statistic zero;        // type None: 2^(bits - 1)
  int32_t level_bits;    // of codes of scales and zero points, where they are nibbles of one byte; else 0
  Outliers outliers;
  const int32_t* order;  // [columns]: code k belongs to input order[k]; null: as they come
};

// Functions of headers are internal to each file: files are compiled for different processors, and a linker that keeps
// one copy of an inline function might keep that of a processor which is not there.
namespace {

inline int64_t tiles(const Matrix& m) { return (m.rows + kTileRows - 1) / kTileRows; }

// Blocks in a group: one, if a chunk holds several.
inline int64_t group_blocks(const Matrix& m) {
  return m.block_units < kChunkUnits ? 1 : (m.group + kChunkColumns - 1) / kChunkColumns;
}

inline int64_t blocks(const Matrix& m) { return m.chunks * (kChunkUnits / m.block_units); }

// Columns of a block: where its codes begin and end.
struct Span {
  int64_t group, within, begin, end;
};

inline Span span_of(const Matrix& m, int64_t block) {
  const int64_t of_group = group_blocks(m), width = m.block_units * kUnitColumns;
  const int64_t group = block / of_group, within = block % of_group;
  const int64_t begin = group * m.group + within * width;
  int64_t end = begin + width;
  if (end > (group + 1) * m.group) end = (group + 1) * m.group;
  if (end > m.columns) end = m.columns;
  return {group, within, begin, end < begin ? begin : end};
}

// Whether scales and zero points are nibbles of one byte whose steps all rows of a tile share.
inline bool in_shared_nibbles(const Matrix& m) {
  return m.level_bits > 0 && m.scale.level_rows > 0 && m.zero.level_rows > 0;
}

// Of a super-block, 256 columns.
constexpr int kSuperUnits = 64;

// Whether scales, and minima where there are some, are bytes whose fp16 steps all groups of a super-block share.
inline bool in_super_blocks(const Matrix& m) {
  const auto of_bytes = [&m](const Statistic& s) {
    return (s.type == Number::Unsigned8 || s.type == Number::Signed8) && s.level_type == Number::Float16 &&
           s.level_rows == 0 && s.shift == nullptr && s.level_groups * m.block_units == kSuperUnits;
  };
  return m.groups % m.scale.level_groups == 0 && of_bytes(m.scale) && (m.minima ? of_bytes(m.zero) : m.zero.type == Number::None);
}

}  // namespace
}  // namespace roundel
