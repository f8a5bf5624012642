// AVX-512: one vector is a whole unit. With VNNI four products of bytes are one instruction; without, as AVX2 does it.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "activations.h"
#include "numbers.h"

namespace roundel {
namespace {

struct Avx512 {
  static constexpr int kVectors = 1, kVectorBytes = 64, kRows = 16, kMostTokens = 4;
  static constexpr int kTableBits = 4;
  static constexpr Start kStart = Start::Pairs;
  using Bytes = __m512i;
  using Sum = __m512i;  // 32 sums of 16 bits, two for each row
  using Real = __m512;

  static Bytes load(const uint8_t* p) { return _mm512_loadu_si512(p); }

  template <int FROM, int WIDTH, int TO>
  static Bytes field(Bytes v) {
    if constexpr (FROM > TO) v = _mm512_srli_epi16(v, FROM - TO);
    if constexpr (FROM < TO) v = _mm512_slli_epi16(v, TO - FROM);
    return _mm512_and_si512(v, _mm512_set1_epi8(((1 << WIDTH) - 1) << TO));
  }
  static Bytes either(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }

  static Sum nothing() { return _mm512_setzero_si512(); }
  static Sum start(const int8_t* word) { return four(word); }
  static Sum dot(Sum sum, Bytes codes, const int8_t* x) {
    return _mm512_add_epi16(sum, _mm512_maddubs_epi16(codes, four(x)));
  }
  static Real total(Sum low) { return _mm512_cvtepi32_ps(_mm512_madd_epi16(low, _mm512_set1_epi16(1))); }
  static Real total(Sum low, Sum high) {
    const __m512i sum = _mm512_add_epi32(_mm512_madd_epi16(low, _mm512_set1_epi16(1)),
                                         _mm512_madd_epi16(high, _mm512_set1_epi16(16)));
    return _mm512_cvtepi32_ps(sum);
  }

  static Real real_zero() { return _mm512_setzero_ps(); }
  static Real broadcast(float x) { return _mm512_set1_ps(x); }
  static Real fma(Real a, Real b, Real c) { return _mm512_fmadd_ps(a, b, c); }
  static Real multiply(Real a, Real b) { return _mm512_mul_ps(a, b); }
  static Real add(Real a, Real b) { return _mm512_add_ps(a, b); }
  static Real subtract(Real a, Real b) { return _mm512_sub_ps(a, b); }
  static Real real_load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Real x) { _mm512_storeu_ps(p, x); }

  static Real divide(Real a, Real b) { return _mm512_div_ps(a, b); }
  static Real round(Real a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Real larger(Real a, Real b) { return _mm512_max_ps(a, b); }
  static Real smaller(Real a, Real b) { return _mm512_min_ps(a, b); }
  // x where 0 <= a <= most, else 0.
  static Real inside(Real a, Real most, Real x) {
    const __mmask16 low = _mm512_cmp_ps_mask(a, real_zero(), _CMP_GE_OQ);
    return _mm512_maskz_mov_ps(_mm512_mask_cmp_ps_mask(low, a, most, _CMP_LE_OQ), x);
  }
  // `size` with the sign of a; 0 where a is.
  static Real signed_size(Real a, Real size) {
    const Real sign = _mm512_and_ps(a, _mm512_set1_ps(-0.0f));
    return _mm512_maskz_or_ps(_mm512_cmp_ps_mask(a, real_zero(), _CMP_NEQ_OQ), size, sign);
  }
  // The sum of all: those 8 apart first, then 4, 2 and 1.
  static float across(Real a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
  // Rounded to bfloat16, halves to even.
  static void store(uint16_t* p, Real a) {
    const __m512i bits = _mm512_castps_si512(a), last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
  }

  using Table = __m512;
  using Index = __m512i;

  static Index indexes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Index upper(Index nibbles) { return _mm512_srli_epi32(nibbles, 4); }
  // base + step * (i - shift) for i in [0, 16).
  static Table table(float step, float shift, float base) {
    const __m512 i = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_fmadd_ps(_mm512_set1_ps(step), _mm512_sub_ps(i, _mm512_set1_ps(shift)), _mm512_set1_ps(base));
  }
  // By the lowest four bits of each index.
  static Real pick(Table table, Index index) { return _mm512_permutexvar_ps(index, table); }

  template <Number TYPE>
  static Real numbers(const void* values, int64_t at) {
    if constexpr (TYPE == Number::Float32) return _mm512_loadu_ps(static_cast<const float*>(values) + at);
    if constexpr (TYPE == Number::Float16 || TYPE == Number::Bfloat16) {
      const __m256i bits =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(values) + at));
      if constexpr (TYPE == Number::Float16) return _mm512_cvtph_ps(bits);
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint8_t*>(values) + at));
    if constexpr (TYPE == Number::LowNibble) bytes = _mm_and_si128(bytes, _mm_set1_epi8(15));
    if constexpr (TYPE == Number::HighNibble) bytes = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
    return _mm512_cvtepi32_ps(TYPE == Number::Signed8 ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
  }

  // Of 16 columns, int32 or uint16.
  template <class Column>
  static Real gather(const float* x, const Column* columns) {
    __m512i at;
    if constexpr (sizeof(Column) == sizeof(uint16_t)) {
      at = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns)));
    } else {
      at = _mm512_loadu_si512(columns);
    }
    return _mm512_i32gather_ps(at, x, 4);
  }
  // Zeros in the place of all but the first `count`.
  static Real first(Real a, int64_t count) {
    return count >= kRows ? a : _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << count) - 1), a);
  }

 protected:
  static __m512i four(const int8_t* x) {
    int32_t word;
    std::memcpy(&word, x, 4);
    return _mm512_set1_epi32(word);
  }
};

#ifdef ROUNDEL_VNNI
struct Avx512Vnni : Avx512 {
  static constexpr Start kStart = Start::Total;  // 16 sums of 32 bits, one for each row

  static Sum dot(Sum sum, Bytes codes, const int8_t* x) { return _mm512_dpbusd_epi32(sum, codes, four(x)); }
  static Real total(Sum low) { return _mm512_cvtepi32_ps(low); }
  static Real total(Sum low, Sum high) {
    return _mm512_cvtepi32_ps(_mm512_add_epi32(low, _mm512_slli_epi32(high, 4)));
  }
};
#endif

}  // namespace
}  // namespace roundel
