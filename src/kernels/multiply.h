// Products of a quantized weight with the activations of several tokens, and its rows as floats.
#pragma once

#include "instruction_sets.h"

namespace roundel {

// y [tokens, rows] = x [tokens, columns] W^T. False: activations are not finite, or 2^96 and more, and y is nothing.
bool multiply(const Matrix& m, const float* x, int64_t tokens, Mode mode, float* y, int threads,
              const InstructionSet& with);

// The same for integer activations of which each token has a scale and a zero point:
//     y = scale (q W^T - zero sum of W's row)
void multiply_integers(const Matrix& m, const int8_t* x, int64_t tokens, const float* scales, const float* zeros,
                       const float* row_sums, float* y, int threads, const InstructionSet& with);

// Rows FIRST to LAST as floats, [rows, columns] in the order of the codes.
void decode(const Matrix& m, int64_t first, int64_t last, float* to, int threads, const InstructionSet& with);

// The given rows, [count, columns].
void lookup(const Matrix& m, const int64_t* rows, int64_t count, float* to, int threads, const InstructionSet& with);

}  // namespace roundel
