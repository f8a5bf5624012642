// Numbers of 16 bits as floats and back, where no vector instruction does it.
#pragma once

#include <cstdint>
#include <cstring>

#include "matrix.h"

namespace roundel {
namespace {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float from_bfloat16(uint16_t bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }

inline float from_float16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t rest = bits & 0x7fffu;
  if (rest >= 0x7c00u) return from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // Multiplying by 2^112 moves the exponent, and makes subnormal numbers normal.
  return from_bits(sign | to_bits(from_bits(rest << 13) * from_bits(0x77800000u)));
}

// The nearest ones, halves to even; what is too large is infinite. No NaN.
inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = to_bits(value);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline uint16_t to_float16(float value) {
  const uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520
  // Below 2^-14 its last bit is 2^-24, which is that of 0.5 in float.
  if (size < 0x38800000u) return static_cast<uint16_t>(sign | (to_bits(from_bits(size) + 0.5f) - to_bits(0.5f)));
  return static_cast<uint16_t>(sign | (((size + 0xfffu + (size >> 13 & 1u)) >> 13) - (112u << 10)));
}

// As it is stored in a type of floats.
inline float rounded_to(Number type, float value) {
  if (type == Number::Float16) return from_float16(to_float16(value));
  if (type == Number::Bfloat16) return from_bfloat16(to_bfloat16(value));
  return value;
}

// One number of a known type.
template <Number TYPE>
inline float number(const void* values, int64_t at) {
  if constexpr (TYPE == Number::Float32) return static_cast<const float*>(values)[at];
  if constexpr (TYPE == Number::Float16) return from_float16(static_cast<const uint16_t*>(values)[at]);
  if constexpr (TYPE == Number::Bfloat16) return from_bfloat16(static_cast<const uint16_t*>(values)[at]);
  if constexpr (TYPE == Number::Signed8) return static_cast<const int8_t*>(values)[at];
  const uint8_t byte = static_cast<const uint8_t*>(values)[at];
  if constexpr (TYPE == Number::LowNibble) return byte & 15;
  if constexpr (TYPE == Number::HighNibble) return byte >> 4;
  return byte;
}

}  // namespace
}  // namespace roundel
