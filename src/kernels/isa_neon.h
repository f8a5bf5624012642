// ARM's NEON. With the dot product instructions (every core since 2018) four products are one of them.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "activations.h"
#include "numbers.h"

namespace roundel {
namespace {

struct NeonReals {
  static constexpr int kVectors = 4, kVectorBytes = 16, kRows = 4, kMostTokens = 4;
  static constexpr int kTableBits = 4;
  static constexpr Start kStart = Start::Total;
  using Bytes = uint8x16_t;
  using Real = float32x4_t;

  static Bytes load(const uint8_t* p) { return vld1q_u8(p); }
  template <int FROM, int WIDTH, int TO>
  static Bytes field(Bytes v) {
    if constexpr (FROM > TO) v = vshrq_n_u8(v, FROM - TO);
    if constexpr (FROM < TO) v = vshlq_n_u8(v, TO - FROM);
    return vandq_u8(v, vdupq_n_u8(((1 << WIDTH) - 1) << TO));
  }
  static Bytes either(Bytes a, Bytes b) { return vorrq_u8(a, b); }

  static Real real_zero() { return vdupq_n_f32(0); }
  static Real broadcast(float x) { return vdupq_n_f32(x); }
  static Real fma(Real a, Real b, Real c) { return vfmaq_f32(c, a, b); }
  static Real multiply(Real a, Real b) { return vmulq_f32(a, b); }
  static Real add(Real a, Real b) { return vaddq_f32(a, b); }
  static Real subtract(Real a, Real b) { return vsubq_f32(a, b); }
  static Real real_load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Real x) { vst1q_f32(p, x); }

  static Real divide(Real a, Real b) { return vdivq_f32(a, b); }
  static Real round(Real a) { return vrndnq_f32(a); }
  static Real larger(Real a, Real b) { return vmaxq_f32(a, b); }
  static Real smaller(Real a, Real b) { return vminq_f32(a, b); }
  // x where 0 <= a <= most, else 0.
  static Real inside(Real a, Real most, Real x) {
    const uint32x4_t is = vandq_u32(vcgeq_f32(a, real_zero()), vcleq_f32(a, most));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), is));
  }
  // `size` with the sign of a; 0 where a is.
  static Real signed_size(Real a, Real size) {
    const uint32x4_t sign = vandq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(0x80000000u));
    const uint32x4_t both = vorrq_u32(vreinterpretq_u32_f32(size), sign);
    return vreinterpretq_f32_u32(vbicq_u32(both, vceqq_f32(a, real_zero())));
  }
  // The sum of all: those 2 apart first.
  static float across(Real a) {
    const float32x2_t half = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(half, 0) + vget_lane_f32(half, 1);
  }
  // Rounded to bfloat16, halves to even.
  static void store(uint16_t* p, Real a) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a), last = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    vst1_u16(p, vshrn_n_u32(vaddq_u32(bits, vaddq_u32(last, vdupq_n_u32(0x7fff))), 16));
  }

  struct Table { float step, shift, base; };
  using Index = uint32x4_t;

  static Index indexes(const uint8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, 4);
    return vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(word)))));
  }
  static Index upper(Index nibbles) { return vshrq_n_u32(nibbles, 4); }
  // base + step * (i - shift): no table, it is computed.
  static Table table(float step, float shift, float base) { return {step, shift, base}; }
  static Real pick(Table table, Index index) {
    const Real code = vcvtq_f32_u32(vandq_u32(index, vdupq_n_u32(15)));
    return vfmaq_n_f32(vdupq_n_f32(table.base), vsubq_f32(code, vdupq_n_f32(table.shift)), table.step);
  }

  template <Number TYPE>
  static Real numbers(const void* values, int64_t at) {
    if constexpr (TYPE == Number::Float32) return vld1q_f32(static_cast<const float*>(values) + at);
    if constexpr (TYPE == Number::Float16 || TYPE == Number::Bfloat16) {
      const uint16x4_t bits = vld1_u16(static_cast<const uint16_t*>(values) + at);
      if constexpr (TYPE == Number::Float16) return vcvt_f32_f16(vreinterpret_f16_u16(bits));
      return vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
    }
    uint32_t word;
    std::memcpy(&word, static_cast<const uint8_t*>(values) + at, 4);
    uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(word));
    if constexpr (TYPE == Number::Signed8) return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(bytes)))));
    if constexpr (TYPE == Number::LowNibble) bytes = vand_u8(bytes, vdup_n_u8(15));
    if constexpr (TYPE == Number::HighNibble) bytes = vshr_n_u8(bytes, 4);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
  }

  // Of 4 columns, int32 or uint16.
  template <class Column>
  static Real gather(const float* x, const Column* at) {
    const float found[kRows] = {x[at[0]], x[at[1]], x[at[2]], x[at[3]]};
    return vld1q_f32(found);
  }
  // Zeros in the place of all but the first `count`.
  static Real first(Real a, int64_t count) {
    if (count >= kRows) return a;
    static constexpr int32_t kNumbers[kRows] = {0, 1, 2, 3};
    const uint32x4_t kept = vcgtq_s32(vdupq_n_s32(static_cast<int32_t>(count)), vld1q_s32(kNumbers));
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), kept));
  }

 protected:
  static int32_t word_at(const int8_t* x) {
    int32_t word;
    std::memcpy(&word, x, 4);
    return word;
  }
};

struct Neon : NeonReals {
  struct Sum { int32x4_t rows01, rows23; };  // two sums for each row

  static Sum nothing() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static Sum start(const int8_t* word) {
    const int32x4_t once = vsetq_lane_s32(0, vsetq_lane_s32(0, vdupq_n_s32(word_at(word)), 1), 3);
    return {once, once};
  }
  static Sum dot(Sum sum, Bytes codes, const int8_t* x) {
    const int8x16_t q = vreinterpretq_s8_u8(codes);
    const int8x8_t four = vreinterpret_s8_s32(vdup_n_s32(word_at(x)));
    return {vpadalq_s16(sum.rows01, vmull_s8(vget_low_s8(q), four)),
            vpadalq_s16(sum.rows23, vmull_s8(vget_high_s8(q), four))};
  }
  static Real total(Sum low) { return vcvtq_f32_s32(vpaddq_s32(low.rows01, low.rows23)); }
  static Real total(Sum low, Sum high) {
    const int32x4_t top = vpaddq_s32(high.rows01, high.rows23);
    return vcvtq_f32_s32(vaddq_s32(vpaddq_s32(low.rows01, low.rows23), vshlq_n_s32(top, 4)));
  }
};

#ifdef __ARM_FEATURE_DOTPROD
struct NeonDot : NeonReals {
  using Sum = int32x4_t;

  static Sum nothing() { return vdupq_n_s32(0); }
  static Sum start(const int8_t* word) { return vdupq_n_s32(word_at(word)); }
  static Sum dot(Sum sum, Bytes codes, const int8_t* x) {
    return vdotq_s32(sum, vreinterpretq_s8_u8(codes), vreinterpretq_s8_s32(vdupq_n_s32(word_at(x))));
  }
  static Real total(Sum low) { return vcvtq_f32_s32(low); }
  static Real total(Sum low, Sum high) { return vcvtq_f32_s32(vaddq_s32(low, vshlq_n_s32(high, 4))); }
};
#endif

}  // namespace
}  // namespace roundel
