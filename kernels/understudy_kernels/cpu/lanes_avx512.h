// Sixteen lanes as one 512-bit register, with the VNNI dot product.
#pragma once
#include <immintrin.h>

#include "api.h"

#define INLINE static inline __attribute__((always_inline))

namespace understudy {
namespace {

struct Floats {
  __m512 all;
};
struct Ints {
  __m512i all;
};  // 16 int32, or 64 bytes of which bytes 4i..4i+3 are lane i's

INLINE Floats splat(float x) { return {_mm512_set1_ps(x)}; }
INLINE Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
INLINE void store(float* p, Floats v) { _mm512_storeu_ps(p, v.all); }
INLINE Floats add(Floats a, Floats b) { return {_mm512_add_ps(a.all, b.all)}; }
INLINE Floats subtract(Floats a, Floats b) { return {_mm512_sub_ps(a.all, b.all)}; }
INLINE Floats multiply(Floats a, Floats b) { return {_mm512_mul_ps(a.all, b.all)}; }
INLINE Floats divide(Floats a, Floats b) { return {_mm512_div_ps(a.all, b.all)}; }
// Both return b where either is not a number.
INLINE Floats minimum(Floats a, Floats b) { return {_mm512_min_ps(a.all, b.all)}; }
INLINE Floats maximum(Floats a, Floats b) { return {_mm512_max_ps(a.all, b.all)}; }
INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.all, b.all, c.all)}; }
INLINE Floats round(Floats a) {
  return {_mm512_roundscale_ps(a.all, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
INLINE Floats power_of_two(Floats n) {  // n is integral, -127 < n < 128
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.all), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
// Keeps lanes below `count`; the others become zero.
INLINE Floats keep_first(Floats v, int64_t count) {
  const unsigned mask = count >= 16 ? 0xffffu : count <= 0 ? 0u : (1u << count) - 1u;
  return {_mm512_maskz_mov_ps(static_cast<__mmask16>(mask), v.all)};
}
// Lanes of `yes` where position < bound, of `no` elsewhere.
INLINE Floats pick_below(Floats position, Floats bound, Floats yes, Floats no) {
  const __mmask16 below = _mm512_cmp_ps_mask(position.all, bound.all, _CMP_LT_OQ);
  return {_mm512_mask_blend_ps(below, no.all, yes.all)};
}

INLINE Floats load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
INLINE Floats load_brain(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
INLINE Floats load_unsigned8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
}
INLINE Floats load_signed8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}

INLINE void store_signed8(int8_t* p, Floats integral) {
  const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(integral.all));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
// For small integers, whose sum is the same in any order.
INLINE float integral_sum(Floats v) { return _mm512_reduce_add_ps(v.all); }
// As integers, magnitudes order like floats and what is not a number comes out on top.
INLINE Floats greater_magnitude(Floats a, Floats b) {
  const __m512i mask = _mm512_set1_epi32(0x7fffffff);
  return {
      _mm512_castsi512_ps(_mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a.all), mask),
                                           _mm512_and_si512(_mm512_castps_si512(b.all), mask)))};
}

INLINE Ints load_bytes(const void* p) { return {_mm512_loadu_si512(p)}; }
INLINE void store_bytes(void* p, Ints v) { _mm512_storeu_si512(p, v.all); }
INLINE Ints splat_quad(const int8_t* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, 4);
  return {_mm512_set1_epi32(quad)};
}
template <int kShift>
INLINE Ints masked_shift(Ints v, int mask) {
  const __m512i m = _mm512_set1_epi8(static_cast<char>(mask));
  return {_mm512_and_si512(_mm512_srli_epi16(v.all, kShift), m)};
}
template <int kShift>
INLINE Ints or_shifted(Ints a, Ints b) {  // a | b << kShift, where b's upper bits are clear
  return {_mm512_or_si512(a.all, _mm512_slli_epi16(b.all, kShift))};
}
template <int kByte>
INLINE Floats unsigned_byte(Ints v) {
  const __m512i shifted = _mm512_srli_epi32(v.all, 8 * kByte);
  return {_mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)))};
}
template <int kByte>
INLINE Floats signed_byte(Ints v) {
  const __m512i raised = _mm512_slli_epi32(v.all, 24 - 8 * kByte);
  return {_mm512_cvtepi32_ps(_mm512_srai_epi32(raised, 24))};
}

enum Kind { kUnsigned4, kUnsigned6, kSigned8 };
// The dot product wants unsigned weights: 128 is added here and taken off with the block's sum.
constexpr bool kSignedBytesAreOffset = true;

INLINE Floats to_floats(Ints v) { return {_mm512_cvtepi32_ps(v.all)}; }

// The dot products of one (half) block. Quads are added in order; `kQuad` counts them from 0.
template <Kind kKind>
struct Dot {
  Ints sum;
  template <int kQuad>
  __attribute__((always_inline)) void add(Ints weights, Ints values) {
    __m512i bytes = weights.all;
    if constexpr (kKind == kSigned8) {
      bytes = _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(0x80)));
    }
    const __m512i before = kQuad == 0 ? _mm512_setzero_si512() : sum.all;
    sum.all = _mm512_dpbusd_epi32(before, bytes, values.all);
  }
  __attribute__((always_inline)) Floats total() const { return to_floats(sum); }
};

constexpr int kExactTile = 12;
constexpr int kRowGroups = 4;  // whose sums of one row do not wait for each other
constexpr int kFastTile = 8;

}  // namespace
}  // namespace understudy
