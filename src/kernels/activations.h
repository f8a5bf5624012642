// Activations as integers: per block of columns a scale and one, two or three digits of 8 bits.
//
//     x = scale * (digit_0 + 254 digit_1 + 254^2 digit_2),   digits in [-127, 127]
//
// Three digits hold 23 bits of the largest of a block, as a float does of each; products and sums of integers are exact,
// so that three digits lose no more than products of floats whose order is free. One is what llama.cpp calls Q8.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace roundel {

constexpr int kBase = 254;
constexpr int kMostDigits = 3;

// What a sum of products starts with: minus the middle of the codes times the activations, so that codes count from
// their middle. Sums that are kept in pairs of 16 bits want it in two halves.
enum class Start { Pairs, Total };

struct Activations {
  int digits;
  int8_t* stream;     // for each block: `digits` starts (int32), then [units, digits, 4]
  float* scales;      // [blocks]
  float* group_sums;  // [groups]: sum of a group's activations, as they are after rounding
  float* values;      // [columns] in the order of the codes; where there are outliers
};

// Bytes of a stream.
static inline int64_t stream_bytes(const Matrix& m, int digits) {
  return blocks(m) * digits * (4 + 4 * m.block_units);
}

}  // namespace roundel
