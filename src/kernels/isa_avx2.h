// AVX2 with FMA and F16C: every x86 processor since 2015.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "activations.h"
#include "numbers.h"

namespace roundel {
namespace {

struct Avx2 {
  static constexpr int kVectors = 2, kVectorBytes = 32, kRows = 8, kMostTokens = 4;
  static constexpr int kTableBits = 3;
  static constexpr Start kStart = Start::Pairs;
  using Bytes = __m256i;
  using Sum = __m256i;  // 16 sums of 16 bits, two for each row
  using Real = __m256;

  static Bytes load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

  // WIDTH bits from bit FROM of every byte, moved to bit TO. There are no shifts of bytes: what comes from the
  // neighbour is masked out.
  template <int FROM, int WIDTH, int TO>
  static Bytes field(Bytes v) {
    if constexpr (FROM > TO) v = _mm256_srli_epi16(v, FROM - TO);
    if constexpr (FROM < TO) v = _mm256_slli_epi16(v, TO - FROM);
    return _mm256_and_si256(v, _mm256_set1_epi8(((1 << WIDTH) - 1) << TO));
  }
  static Bytes either(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }

  static Sum nothing() { return _mm256_setzero_si256(); }
  static Sum start(const int8_t* word) { return four(word); }
  // Codes of a part are at most 15: 16 products of one sum stay within 16 bits, whatever the activations.
  static Sum dot(Sum sum, Bytes codes, const int8_t* x) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, four(x)));
  }
  static Real total(Sum low) { return _mm256_cvtepi32_ps(_mm256_madd_epi16(low, _mm256_set1_epi16(1))); }
  static Real total(Sum low, Sum high) {
    const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(low, _mm256_set1_epi16(1)),
                                         _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
    return _mm256_cvtepi32_ps(sum);
  }

  static Real real_zero() { return _mm256_setzero_ps(); }
  static Real broadcast(float x) { return _mm256_set1_ps(x); }
  static Real fma(Real a, Real b, Real c) { return _mm256_fmadd_ps(a, b, c); }
  static Real multiply(Real a, Real b) { return _mm256_mul_ps(a, b); }
  static Real add(Real a, Real b) { return _mm256_add_ps(a, b); }
  static Real subtract(Real a, Real b) { return _mm256_sub_ps(a, b); }
  static Real real_load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Real x) { _mm256_storeu_ps(p, x); }

  static Real divide(Real a, Real b) { return _mm256_div_ps(a, b); }
  static Real round(Real a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Real larger(Real a, Real b) { return _mm256_max_ps(a, b); }
  static Real smaller(Real a, Real b) { return _mm256_min_ps(a, b); }
  // x where 0 <= a <= most, else 0.
  static Real inside(Real a, Real most, Real x) {
    const Real low = _mm256_cmp_ps(a, real_zero(), _CMP_GE_OQ), high = _mm256_cmp_ps(a, most, _CMP_LE_OQ);
    return _mm256_and_ps(x, _mm256_and_ps(low, high));
  }
  // `size` with the sign of a; 0 where a is.
  static Real signed_size(Real a, Real size) {
    const Real sign = _mm256_and_ps(a, _mm256_set1_ps(-0.0f));
    return _mm256_and_ps(_mm256_or_ps(size, sign), _mm256_cmp_ps(a, real_zero(), _CMP_NEQ_OQ));
  }
  // The sum of all: those 4 apart first, then 2 and 1.
  static float across(Real a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
  // Rounded to bfloat16, halves to even.
  static void store(uint16_t* p, Real a) {
    const __m256i bits = _mm256_castps_si256(a), last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    const __m256i top = _mm256_srli_epi32(up, 16);
    const __m128i both = _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), both);
  }

  using Table = __m256;
  using Index = __m256i;

  static Index indexes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static Index upper(Index nibbles) { return _mm256_srli_epi32(nibbles, 4); }
  // base + step * (i - shift) for i in [0, 8).
  static Table table(float step, float shift, float base) {
    const __m256 i = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_fmadd_ps(_mm256_set1_ps(step), _mm256_sub_ps(i, _mm256_set1_ps(shift)), _mm256_set1_ps(base));
  }
  // By the lowest three bits of each index.
  static Real pick(Table table, Index index) { return _mm256_permutevar8x32_ps(table, index); }

  template <Number TYPE>
  static Real numbers(const void* values, int64_t at) {
    if constexpr (TYPE == Number::Float32) return _mm256_loadu_ps(static_cast<const float*>(values) + at);
    if constexpr (TYPE == Number::Float16 || TYPE == Number::Bfloat16) {
      const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(values) + at));
      if constexpr (TYPE == Number::Float16) return _mm256_cvtph_ps(bits);
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(static_cast<const uint8_t*>(values) + at));
    if constexpr (TYPE == Number::LowNibble) bytes = _mm_and_si128(bytes, _mm_set1_epi8(15));
    if constexpr (TYPE == Number::HighNibble) bytes = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
    return _mm256_cvtepi32_ps(TYPE == Number::Signed8 ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
  }

  // Of 8 columns, int32 or uint16. The instruction for it is slow on many processors.
  template <class Column>
  static Real gather(const float* x, const Column* at) {
    return _mm256_setr_ps(x[at[0]], x[at[1]], x[at[2]], x[at[3]], x[at[4]], x[at[5]], x[at[6]], x[at[7]]);
  }
  // Zeros in the place of all but the first `count`.
  static Real first(Real a, int64_t count) {
    if (count >= kRows) return a;
    const __m256i i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), i);
    return _mm256_and_ps(a, _mm256_castsi256_ps(kept));
  }

 private:
  static __m256i four(const int8_t* x) {
    int32_t word;
    std::memcpy(&word, x, 4);
    return _mm256_set1_epi32(word);
  }
};

}  // namespace
}  // namespace roundel
