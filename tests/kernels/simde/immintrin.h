// In place of the compiler's: AVX-512's intrinsics by other instructions. What SIMDe 0.7 lacks or names wrongly is
// mended here, with the halves of vectors.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

namespace {

inline __m512 by_halves(__m256 low, __m256 high) {
  simde__m512_private to;
  to.m256[0] = simde__m256_from_private(simde__m256_to_private(low));
  to.m256[1] = simde__m256_from_private(simde__m256_to_private(high));
  return simde__m512_from_private(to);
}

inline __m512i by_halves(__m256i low, __m256i high) {
  simde__m512i_private to;
  to.m256i[0] = low;
  to.m256i[1] = high;
  return simde__m512i_from_private(to);
}

inline __m512 cvtepi32_ps(__m512i x) {
  const simde__m512i_private of = simde__m512i_to_private(x);
  return by_halves(_mm256_cvtepi32_ps(of.m256i[0]), _mm256_cvtepi32_ps(of.m256i[1]));
}
inline __m512 cvtph_ps(__m256i x) {
  return by_halves(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}
inline __m512i cvtepu16_epi32(__m256i x) {
  return by_halves(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)),
                   _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)));
}
inline __m512i cvtepi8_epi32(__m128i x) {
  return by_halves(_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)));
}
inline __m512i cvtepu8_epi32(__m128i x) {
  return by_halves(_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)));
}
inline __m512 i32gather_ps(__m512i at, const float* from) {
  const simde__m512i_private of = simde__m512i_to_private(at);
  return by_halves(_mm256_i32gather_ps(from, of.m256i[0], 4), _mm256_i32gather_ps(from, of.m256i[1], 4));
}
inline __m256 extractf32x8_ps(__m512 x, int half) {
  return simde__m512_to_private(x).m256[half];
}
// The lower halves of all.
inline __m256i cvtepi32_epi16(__m512i x) {
  const simde__m512i_private of = simde__m512i_to_private(x);
  const __m256i low = _mm256_set1_epi32(0xffff);
  const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(of.m256i[0], low), _mm256_and_si256(of.m256i[1], low));
  return _mm256_permute4x64_epi64(packed, 0b11011000);
}
inline __mmask16 mask_cmp_ps_mask(__mmask16 among, __m512 a, __m512 b, int how) {
  return static_cast<__mmask16>(among & _mm512_cmp_ps_mask(a, b, how));
}

}  // namespace

#undef _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#define _mm512_cvtepi32_ps(x) cvtepi32_ps(x)
#define _mm512_cvtph_ps(x) cvtph_ps(x)
#define _mm512_cvtepu16_epi32(x) cvtepu16_epi32(x)
#define _mm512_cvtepi8_epi32(x) cvtepi8_epi32(x)
#define _mm512_cvtepu8_epi32(x) cvtepu8_epi32(x)
#undef _mm512_i32gather_ps
#define _mm512_i32gather_ps(at, from, size) i32gather_ps(at, from)
#define _mm512_cvtepi32_epi16(x) cvtepi32_epi16(x)
#define _mm512_extractf32x8_ps(x, half) extractf32x8_ps(x, half)
#define _mm512_mask_cmp_ps_mask(among, a, b, how) mask_cmp_ps_mask(among, a, b, how)
