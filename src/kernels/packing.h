// Codes into the planes that products read (matrix.h).
#pragma once

#include "matrix.h"

namespace roundel {

// `codes`: [rows, columns], one in a byte, in rows FIRST to LAST of the matrix, FIRST a multiple of 16; `to`: all its tiles. Of
// the matrix only what says its shape is read.
void pack(const Matrix& m, const uint8_t* codes, int64_t first, int64_t last, uint8_t* to, int threads);

}  // namespace roundel
