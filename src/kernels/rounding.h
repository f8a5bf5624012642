// Rounds activations to digits. Plain loops, which compilers make vectors of: compiled for each instruction set.
#pragma once

#include <cmath>
#include <cstring>

#include "activations.h"
#include "numbers.h"

namespace roundel {
namespace {

// Of activations this large, 2^96, infinity and not a number, sums of products of integers might run over where those of
// floats do not: they are left to these.
constexpr uint32_t kTooLarge = 0x6f800000u;
// Three digits: the largest of a block lies in [2^21, 2^22].
constexpr int kExponent = 22;
// Blocks of nothing larger than 2^-100 are kept to 2^-122: their scale must not become subnormal.
constexpr int kLeastExponent = -100;
constexpr float kLeast = 1e-30f;

inline int middle(int bits) { return bits <= 4 ? 1 << (bits - 1) : 1 << (bits - 5); }

inline int32_t pair(int32_t low, int32_t high) {
  return static_cast<int32_t>(static_cast<uint32_t>(low & 0xffff) | static_cast<uint32_t>(high) << 16);
}

// Scale of a block whose largest activation is `largest`, and its inverse.
inline void scale_of(float largest, int digits, float* scale, float* inverse) {
  if (digits == 3) {
    // largest < 2^exponent, by its bits; those of subnormal numbers say less than kLeastExponent.
    int exponent = static_cast<int>(to_bits(largest) >> 23) - 126;
    if (exponent < kLeastExponent) exponent = kLeastExponent;
    *scale = from_bits(static_cast<uint32_t>(exponent - kExponent + 127) << 23);
    *inverse = from_bits(static_cast<uint32_t>(kExponent - exponent + 127) << 23);
    return;
  }
  // One less than two digits hold: half of the base would be rounded up to a digit of 128.
  const float most = digits == 1 ? 127.0f : 127.0f * kBase + 126.0f;
  *scale = largest < kLeast ? 0.0f : largest / most;
  *inverse = largest < kLeast ? 0.0f : most / largest;
}

// Digits of one block, `[units, digits, 4]`, behind its starts. Returns the sum of what the digits say.
template <int D>
inline int32_t write_block(const int8_t (*digit)[kChunkColumns], int units, int mid, Start start, int8_t* to) {
  int32_t all = 0;
  for (int d = D - 1; d >= 0; --d) {
    int32_t sums[kUnitColumns] = {};
    for (int u = 0; u < kChunkUnits; ++u)
      for (int i = 0; i < kUnitColumns; ++i) sums[i] += digit[d][kUnitColumns * u + i];
    const int32_t low = sums[0] + sums[1], high = sums[2] + sums[3];
    const int32_t word = start == Start::Pairs ? pair(-mid * low, -mid * high) : -mid * (low + high);
    std::memcpy(to + 4 * d, &word, 4);
    all = kBase * all + low + high;
  }
  to += 4 * D;
  for (int u = 0; u < units; ++u)
    for (int d = 0; d < D; ++d, to += kUnitColumns) std::memcpy(to, digit[d] + kUnitColumns * u, kUnitColumns);
  return all;
}

inline uint32_t largest_size(const float* block) {
  uint32_t largest = 0;
  for (int i = 0; i < kChunkColumns; ++i) {
    const uint32_t size = to_bits(block[i]) & 0x7fffffffu;
    largest = size > largest ? size : largest;
  }
  return largest;
}

template <int D>
inline void split(const float* block, float inverse, int8_t (*digit)[kChunkColumns]) {
  for (int i = 0; i < kChunkColumns; ++i) {
    float rest = std::nearbyint(block[i] * inverse);
    if constexpr (D == 3) {
      const float top = std::nearbyint(rest * (1.0f / (kBase * kBase)));
      rest -= top * (kBase * kBase);
      digit[2][i] = static_cast<int8_t>(static_cast<int32_t>(top));
    }
    if constexpr (D >= 2) {
      const float next = std::nearbyint(rest * (1.0f / kBase));
      rest -= next * kBase;
      digit[1][i] = static_cast<int8_t>(static_cast<int32_t>(next));
    }
    digit[0][i] = static_cast<int8_t>(static_cast<int32_t>(rest));
  }
}

// In many sums, each in one order, for vectors; in double, where no square of a float runs over.
inline double mean_square(const float* x, int64_t count) {
  double sums[kChunkColumns] = {};
  int64_t i = 0;
  for (; i + kChunkColumns <= count; i += kChunkColumns)
    for (int k = 0; k < kChunkColumns; ++k) sums[k] += static_cast<double>(x[i + k]) * x[i + k];
  for (int k = 0; i < count; ++i, ++k) sums[k] += static_cast<double>(x[i]) * x[i];
  double sum = 0;
  for (double part : sums) sum += part;
  return sum / static_cast<double>(count);
}

template <int LEAST, int MOST>
bool round_row(const Matrix& m, const float* x, Start start, const Activations& to) {
  const int mid = middle(m.bits);
  int8_t* stream = to.stream;
  float group_sum = 0;
  double limit = 0;
  if constexpr (LEAST < MOST) limit = kStandsOut * mean_square(x, m.columns);
  for (int64_t b = 0; b < blocks(m); ++b, stream += MOST * (4 + 4 * m.block_units)) {
    const Span span = span_of(m, b);
    const int count = static_cast<int>(span.end - span.begin);
    float gathered[kChunkColumns];
    const float* block = x + span.begin;
    if (m.order != nullptr || count < kChunkColumns) {
      for (float& value : gathered) value = 0;
      for (int i = 0; i < count; ++i) gathered[i] = m.order == nullptr ? block[i] : x[m.order[span.begin + i]];
      block = gathered;
    }
    if (to.values != nullptr)
      for (int i = 0; i < count; ++i) to.values[span.begin + i] = block[i];

    const uint32_t largest = largest_size(block);
    if (largest >= kTooLarge) return false;
    const double size = from_bits(largest);
    const bool wide = LEAST == MOST || size * size > limit;
    float scale, inverse;
    scale_of(from_bits(largest), wide ? MOST : LEAST, &scale, &inverse);
    int8_t digit[MOST][kChunkColumns] = {};
    if (wide) {
      split<MOST>(block, inverse, digit);
    } else {
      split<LEAST>(block, inverse, digit);
    }
    const int32_t sum = write_block<MOST>(digit, m.block_units, mid, start, stream);
    to.wide[b] = wide;
    to.scales[b] = scale;
    group_sum = (span.within == 0 ? 0.0f : group_sum) + static_cast<float>(sum) * scale;
    to.group_sums[span.group] = group_sum;
  }
  return true;
}

// Round the activations of one row, `columns` of the matrix; false: they are not finite, or 2^96 and more.
template <class Isa>
bool round_activations(const Matrix& m, const float* x, const Activations& to) {
  if (to.digits.most == 3) return round_row<3, 3>(m, x, Isa::kStart, to);
  return to.digits.least == 2 ? round_row<2, 2>(m, x, Isa::kStart, to) : round_row<1, 2>(m, x, Isa::kStart, to);
}

// The same for integers in [-128, 127] that are given: one digit, scale 1.
template <class Isa>
void take_integers(const Matrix& m, const int8_t* x, const Activations& to) {
  const int mid = middle(m.bits);
  int8_t* stream = to.stream;
  int32_t group_sum = 0;
  for (int64_t b = 0; b < blocks(m); ++b, stream += 4 + 4 * m.block_units) {
    const Span span = span_of(m, b);
    int8_t digit[1][kChunkColumns] = {};
    for (int64_t i = span.begin; i < span.end; ++i) {
      const int8_t value = x[m.order == nullptr ? i : m.order[i]];
      digit[0][i - span.begin] = value;
      if (to.values != nullptr) to.values[i] = value;
    }
    const int32_t sum = write_block<1>(digit, m.block_units, mid, Isa::kStart, stream);
    to.scales[b] = 1.0f;
    group_sum = (span.within == 0 ? 0 : group_sum) + sum;
    to.group_sums[span.group] = static_cast<float>(group_sum);
  }
}

}  // namespace
}  // namespace roundel
