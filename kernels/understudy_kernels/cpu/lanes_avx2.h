// Sixteen lanes as two 256-bit registers. Lane i belongs to output row i of a group.
#pragma once
#include <immintrin.h>

#include "api.h"

#define INLINE static inline __attribute__((always_inline))

namespace understudy {
namespace {

struct Floats {
  __m256 low, high;
};
struct Ints {
  __m256i low, high;
};  // 16 int32, or 64 bytes of which bytes 4i..4i+3 are lane i's

INLINE Floats splat(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
INLINE Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void store(float* p, Floats v) {
  _mm256_storeu_ps(p, v.low);
  _mm256_storeu_ps(p + 8, v.high);
}
#define LANEWISE(name, intrinsic)                                \
  INLINE Floats name(Floats a, Floats b) {                       \
    return {intrinsic(a.low, b.low), intrinsic(a.high, b.high)}; \
  }
LANEWISE(add, _mm256_add_ps)
LANEWISE(subtract, _mm256_sub_ps)
LANEWISE(multiply, _mm256_mul_ps)
LANEWISE(divide, _mm256_div_ps)
LANEWISE(minimum, _mm256_min_ps)  // returns b where either is not a number
LANEWISE(maximum, _mm256_max_ps)  // likewise
#undef LANEWISE
INLINE Floats fma(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
INLINE Floats round(Floats a) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, nearest), _mm256_round_ps(a.high, nearest)};
}
INLINE Floats power_of_two(Floats n) {  // n is integral, -127 < n < 128
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i low = _mm256_add_epi32(_mm256_cvtps_epi32(n.low), bias);
  const __m256i high = _mm256_add_epi32(_mm256_cvtps_epi32(n.high), bias);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(high, 23))};
}
// Keeps lanes below `count`; the others become zero.
INLINE Floats keep_first(Floats v, int64_t count) {
  const __m256i limit = _mm256_set1_epi32(static_cast<int>(count));
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i upper = _mm256_add_epi32(lane, _mm256_set1_epi32(8));
  return {_mm256_and_ps(v.low, _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, lane))),
          _mm256_and_ps(v.high, _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, upper)))};
}
// Lanes of `yes` where position < bound, of `no` elsewhere.
INLINE Floats pick_below(Floats position, Floats bound, Floats yes, Floats no) {
  const __m256 low = _mm256_cmp_ps(position.low, bound.low, _CMP_LT_OQ);
  const __m256 high = _mm256_cmp_ps(position.high, bound.high, _CMP_LT_OQ);
  return {_mm256_blendv_ps(no.low, yes.low, low), _mm256_blendv_ps(no.high, yes.high, high)};
}

INLINE Floats load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
INLINE __m256 brain_eight(const uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
INLINE Floats load_brain(const uint16_t* p) { return {brain_eight(p), brain_eight(p + 8)}; }
INLINE Floats load_unsigned8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}
INLINE Floats load_signed8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

INLINE void store_signed8(int8_t* p, Floats integral) {
  const __m256i pairs =
      _mm256_packs_epi32(_mm256_cvtps_epi32(integral.low), _mm256_cvtps_epi32(integral.high));
  const __m256i ordered = _mm256_permute4x64_epi64(pairs, 0xd8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
// For small integers, whose sum is the same in any order.
INLINE float integral_sum(Floats v) {
  const __m256 eight = _mm256_add_ps(v.low, v.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// As integers, magnitudes order like floats and what is not a number comes out on top.
INLINE Floats greater_magnitude(Floats a, Floats b) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  const auto pick = [&](__m256 x, __m256 y) __attribute__((always_inline)) {
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(x), mask),
                                                _mm256_and_si256(_mm256_castps_si256(y), mask)));
  };
  return {pick(a.low, b.low), pick(a.high, b.high)};
}

INLINE Ints load_bytes(const void* p) {
  const __m256i* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
INLINE void store_bytes(void* p, Ints v) {
  __m256i* q = static_cast<__m256i*>(p);
  _mm256_storeu_si256(q, v.low);
  _mm256_storeu_si256(q + 1, v.high);
}
INLINE Ints splat_quad(const int8_t* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, 4);
  const __m256i v = _mm256_set1_epi32(quad);
  return {v, v};
}
template <int kShift>
INLINE Ints masked_shift(Ints v, int mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(_mm256_srli_epi16(v.low, kShift), m),
          _mm256_and_si256(_mm256_srli_epi16(v.high, kShift), m)};
}
template <int kShift>
INLINE Ints or_shifted(Ints a, Ints b) {  // a | b << kShift, where b's upper bits are clear
  return {_mm256_or_si256(a.low, _mm256_slli_epi16(b.low, kShift)),
          _mm256_or_si256(a.high, _mm256_slli_epi16(b.high, kShift))};
}
template <int kByte>
INLINE Floats unsigned_byte(Ints v) {
  const __m256i mask = _mm256_set1_epi32(255);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(v.low, 8 * kByte), mask)),
          _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(v.high, 8 * kByte), mask))};
}
template <int kByte>
INLINE Floats signed_byte(Ints v) {
  return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v.low, 24 - 8 * kByte), 24)),
          _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v.high, 24 - 8 * kByte), 24))};
}

// How a format's weights lie in bytes, which decides how many products fit into 16 bits.
enum Kind { kUnsigned4, kUnsigned6, kSigned8 };
constexpr bool kSignedBytesAreOffset = false;

INLINE Ints products(Ints weights, Ints values) {
  return {_mm256_maddubs_epi16(weights.low, values.low),
          _mm256_maddubs_epi16(weights.high, values.high)};
}
INLINE Ints widened(Ints v) {
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_madd_epi16(v.low, ones), _mm256_madd_epi16(v.high, ones)};
}
INLINE Ints add16(Ints a, Ints b) {
  return {_mm256_add_epi16(a.low, b.low), _mm256_add_epi16(a.high, b.high)};
}
INLINE Ints add32(Ints a, Ints b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
INLINE Floats to_floats(Ints v) { return {_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)}; }

// Without this GCC computes all products of a block first and adds them up afterwards, from memory:
// a third of the speed.
INLINE void add_now(Ints& v) { asm("" : "+x"(v.low), "+x"(v.high)); }

// The dot products of one (half) block. Quads are added in order; `kQuad` counts them from 0.
template <Kind kKind>
struct Dot {
  Ints sum16, sum32;
  template <int kQuad>
  __attribute__((always_inline)) void add(Ints weights, Ints values) {
    if constexpr (kKind == kUnsigned4) {  // eight times 2 * 15 * 127 stays below 2^15
      const Ints p = products(weights, values);
      sum16 = kQuad == 0 ? p : add16(sum16, p);
      add_now(sum16);
    } else if constexpr (kKind == kUnsigned6) {  // two times 2 * 63 * 127 does, three do not
      const Ints p = products(weights, values);
      if constexpr (kQuad % 2 == 0) {
        sum16 = p;
      } else {
        const Ints wide = widened(add16(sum16, p));
        sum32 = kQuad == 1 ? wide : add32(sum32, wide);
        add_now(sum32);
      }
    } else {  // 2 * 128 * 127 does; the sign moves to the activation
      const Ints magnitude = {_mm256_abs_epi8(weights.low), _mm256_abs_epi8(weights.high)};
      const Ints turned = {_mm256_sign_epi8(values.low, weights.low),
                           _mm256_sign_epi8(values.high, weights.high)};
      const Ints wide = widened(products(magnitude, turned));
      sum32 = kQuad == 0 ? wide : add32(sum32, wide);
      add_now(sum32);
    }
  }
  __attribute__((always_inline)) Floats total() const {
    return to_floats(kKind == kUnsigned4 ? widened(sum16) : sum32);
  }
};

constexpr int kExactTile = 6;  // rows x 2 registers, leaving four
constexpr int kRowGroups = 2;  // whose sums of one row do not wait for each other
constexpr int kFastTile = 6;

}  // namespace
}  // namespace understudy
