// The instruction sets that this build has, and which of them this processor has.
#pragma once

#include "activations.h"
#include "matrix.h"

namespace roundel {

// Products of a tile with `count` tokens: [count, 16].
using Product = void (*)(const Matrix&, int64_t tile, const Activations*, float (*)[kTileRows]);

// Weights of rows FIRST to LAST, which lie in the tile: [rows, stride].
using Decode = void (*)(const Matrix&, int64_t tile, int64_t first, int64_t last, float* to, int64_t stride);

struct InstructionSet {
  const char* name;
  bool (*present)();
  Start start;
  Product (*product)(int bits, int digits, int count, int units);
  Decode decode;
  int most_tokens;  // at once
};

// Best first; the last one, "portable", is everywhere.
const InstructionSet* const* instruction_sets(int* count);

// The named one; null: it is not here. Without a name: the best that is present.
const InstructionSet* instruction_set(const char* name);

}  // namespace roundel
