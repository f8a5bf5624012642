// Activations as integers: per block of columns a scale and one, two or three digits of 8 bits.
//
//     x = scale * (digit_0 + 254 digit_1 + 254^2 digit_2),   digits in [-127, 127]
//
// Three digits hold 23 bits of the largest of a block, as a float does of each; products and sums of integers are exact,
// so that three digits lose no more than products of floats whose order is free. One is what llama.cpp calls Q8. It is too
// coarse for a block whose largest stands out, and a few such blocks make nearly all of a token's error: these have two.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace roundel {

constexpr int kBase = 254;

enum class Mode { Exact, Fast };

// Digits of a block: as many as `most` where it stands out of its token, else `least`.
struct Digits {
  int least, most;
};

constexpr Digits kIntegers{1, 1};

// Weights of more than 4 bits are finer than what one digit would add.
constexpr Digits digits_of(Mode mode, int bits) {
  return mode == Mode::Exact ? Digits{3, 3} : bits <= 4 ? Digits{1, 2} : Digits{2, 2};
}

// A block stands out if its largest is more than 3 times the root mean square of its token. In all others a digit rounds
// to steps of 3/127 of that at most, which is an error of 5e-5 of the power of the token at the very worst.
constexpr double kStandsOut = 3 * 3;

// What a sum of products starts with: minus the middle of the codes times the activations, so that codes count from
// their middle. Sums that are kept in pairs of 16 bits want it in two halves.
enum class Start { Pairs, Total };

struct Activations {
  Digits digits;
  int8_t* stream;     // for each block: `most` starts (int32), then [units, most, 4]
  uint8_t* wide;      // [blocks]: whether a block has `most` digits; its others are zero
  float* scales;      // [blocks]
  float* group_sums;  // [groups]: sum of a group's activations, as they are after rounding
  float* values;      // [columns] in the order of the codes; where there are outliers
};

// Bytes of a stream.
static inline int64_t stream_bytes(const Matrix& m, Digits digits) {
  return blocks(m) * digits.most * (4 + 4 * m.block_units);
}

}  // namespace roundel
