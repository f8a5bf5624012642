// The instruction sets that this build has, and which of them this processor has.
#pragma once

#include "activations.h"
#include "matrix.h"

namespace roundel {

// Rows 16 * number and the 15 behind them, with their statistics as floats, [groups, 16].
struct Tile {
  int64_t number;
  float* scales;
  float* zeros;  // as they are stored, or the values of the middle codes; null: the middle codes are zero
};

// Rounds the activations of a token; false: they are not finite.
using Round = bool (*)(const Matrix&, const float* x, const Activations&);

// The same for integers in [-128, 127].
using Take = void (*)(const Matrix&, const int8_t* x, const Activations&);

// Fills in the statistics of a tile as they are stored.
using Statistics = void (*)(const Matrix&, int64_t tile, float* scales, float* zeros);

// Makes values of the middle codes of stored zero points.
using Centre = void (*)(const Matrix&, const float* scales, float* zeros);

// Products of a tile, whose zeros are values of the middle codes, with `count` tokens: [count, 16].
using Product = void (*)(const Matrix&, const Tile&, const Activations*, float (*)[kTileRows]);

// Weights of rows FIRST to LAST, which lie in the tile, whose zeros are as they are stored: [rows, stride].
using Decode = void (*)(const Matrix&, const Tile&, int64_t first, int64_t last, float* to, int64_t stride);

struct InstructionSet {
  const char* name;
  bool (*present)();
  Round round;
  Take take;
  Statistics statistics;
  Centre centre;
  Product (*product)(int bits, int digits, int count, int units);
  Decode decode;
  int most_tokens;  // at once
};

// Best first; the last one, "portable", is everywhere.
const InstructionSet* const* instruction_sets(int* count);

// The named one; null: it is not here. Without a name: the best that is present.
const InstructionSet* instruction_set(const char* name);

}  // namespace roundel
