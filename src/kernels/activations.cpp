#include "activations.h"

#include <algorithm>
#include <cmath>
#include <cstring>

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

int middle(int bits) { return bits <= 4 ? 1 << (bits - 1) : 1 << (bits - 5); }

int32_t pair(int32_t low, int32_t high) {
  return static_cast<int32_t>(static_cast<uint32_t>(low & 0xffff) | static_cast<uint32_t>(high) << 16);
}

// Scale of a block whose largest activation is `largest`, and its inverse.
void scale_of(float largest, int digits, float* scale, float* inverse) {
  if (digits == kMostDigits) {
    int exponent = kLeastExponent;
    if (largest > 0) std::frexp(largest, &exponent);
    exponent = std::max(exponent, kLeastExponent);
    *scale = std::ldexp(1.0f, exponent - kExponent);
    *inverse = std::ldexp(1.0f, kExponent - exponent);
    return;
  }
  // One less than two digits hold: half of the base would be rounded up to a digit of 128.
  const float most = digits == 1 ? 127.0f : 127.0f * kBase + 126.0f;
  *scale = largest < kLeast ? 0.0f : largest / most;
  *inverse = largest < kLeast ? 0.0f : most / largest;
}

// Digits of one block, `[units, digits, 4]`, and its starts.
template <int D>
void write_block(const int8_t (*digit)[kChunkColumns], int units, int mid, Start start, int8_t* to) {
  for (int d = 0; d < D; ++d) {
    int32_t low = 0, high = 0;
    for (int u = 0; u < units; ++u) {
      low += digit[d][4 * u] + digit[d][4 * u + 1];
      high += digit[d][4 * u + 2] + digit[d][4 * u + 3];
    }
    const int32_t word = start == Start::Pairs ? pair(-mid * low, -mid * high) : -mid * (low + high);
    std::memcpy(to + 4 * d, &word, 4);
  }
  to += 4 * D;
  for (int u = 0; u < units; ++u)
    for (int d = 0; d < D; ++d, to += 4) std::memcpy(to, digit[d] + 4 * u, 4);
}

template <int D>
bool round_row(const Matrix& m, const float* x, Start start, const Activations& to) {
  const int mid = middle(m.bits);
  int8_t* stream = to.stream;
  uint32_t worst = 0;
  float group_sum = 0;
  for (int64_t b = 0; b < blocks(m); ++b, stream += D * (4 + 4 * m.block_units)) {
    const Span span = span_of(m, b);
    const int count = static_cast<int>(span.end - span.begin);
    float block[kChunkColumns] = {};
    if (m.order == nullptr) {
      for (int i = 0; i < count; ++i) block[i] = x[span.begin + i];
    } else {
      for (int i = 0; i < count; ++i) block[i] = x[m.order[span.begin + i]];
    }
    if (to.values != nullptr)
      for (int i = 0; i < count; ++i) to.values[span.begin + i] = block[i];

    uint32_t largest = 0;
    for (int i = 0; i < kChunkColumns; ++i) largest = std::max(largest, to_bits(block[i]) & 0x7fffffffu);
    worst = std::max(worst, largest);
    if (worst >= kTooLarge) return false;

    float scale, inverse;
    scale_of(from_bits(largest), D, &scale, &inverse);
    int8_t digit[D][kChunkColumns];
    float sum = 0;
    for (int i = 0; i < kChunkColumns; ++i) {
      float rest = std::nearbyint(block[i] * inverse);
      sum += rest;
      if constexpr (D == 3) {
        const float top = std::nearbyint(rest * (1.0f / (kBase * kBase)));
        rest -= top * (kBase * kBase);
        digit[2][i] = static_cast<int8_t>(top);
      }
      if constexpr (D >= 2) {
        const float next = std::nearbyint(rest * (1.0f / kBase));
        rest -= next * kBase;
        digit[1][i] = static_cast<int8_t>(next);
      }
      digit[0][i] = static_cast<int8_t>(rest);
    }
    to.scales[b] = scale;
    group_sum = (span.within == 0 ? 0.0f : group_sum) + sum * scale;
    to.group_sums[span.group] = group_sum;
    write_block<D>(digit, m.block_units, mid, start, stream);
  }
  return true;
}

}  // namespace

bool round_activations(const Matrix& m, const float* x, Start start, const Activations& to) {
  switch (to.digits) {
    case 1: return round_row<1>(m, x, start, to);
    case 2: return round_row<2>(m, x, start, to);
    default: return round_row<3>(m, x, start, to);
  }
}

void take_integers(const Matrix& m, const int8_t* x, Start start, const Activations& to) {
  const int mid = middle(m.bits);
  int8_t* stream = to.stream;
  int32_t group_sum = 0;
  for (int64_t b = 0; b < blocks(m); ++b, stream += 4 + 4 * m.block_units) {
    const Span span = span_of(m, b);
    int8_t digit[1][kChunkColumns] = {};
    int32_t sum = 0;
    for (int64_t i = span.begin; i < span.end; ++i) {
      const int8_t value = x[m.order == nullptr ? i : m.order[i]];
      digit[0][i - span.begin] = value;
      sum += value;
      if (to.values != nullptr) to.values[i] = value;
    }
    to.scales[b] = 1.0f;
    group_sum = (span.within == 0 ? 0 : group_sum) + sum;
    to.group_sums[span.group] = static_cast<float>(group_sum);
    write_block<1>(digit, m.block_units, mid, start, stream);
  }
}

}  // namespace roundel
