// The lanes of the instruction set this file is compiled for.
//
// Nothing here may instantiate a template of the standard library: its code would be shared by name
// between the instruction sets, and the linker could keep the one this machine cannot run.
#pragma once
#ifdef __AVX512VNNI__
#include "lanes_avx512.h"
#else
#include "lanes_avx2.h"
#endif

namespace understudy {
namespace {

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

INLINE float sum_of(Floats v) {  // in the order of lanes
  alignas(64) float lanes[kLanes];
  store(lanes, v);
  float total = lanes[0];
  for (int i = 1; i < kLanes; ++i) total += lanes[i];
  return total;
}

INLINE float largest_lane(Floats v) {  // of lanes that are all numbers
  alignas(64) float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  }
  return lanes[0];
}

INLINE Floats load_first(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  alignas(64) float lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}
INLINE void store_first(float* p, Floats v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  alignas(64) float lanes[kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

// Within two units in the last place; numbers that are not numbers stay so.
INLINE Floats exponential(Floats x) {
  x = maximum(splat(-87.0f), minimum(splat(88.0f), x));
  const Floats n = round(multiply(x, splat(1.44269504f)));
  Floats r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Floats p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(multiply(p, r), r, add(r, splat(1.0f)));
  return multiply(p, power_of_two(n));
}

// Numbers of 16 bits as they lie in memory, so that loads know what they find there.
struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};
INLINE Floats load(const Half* p) { return load_half(reinterpret_cast<const uint16_t*>(p)); }
INLINE Floats load(const Brain* p) { return load_brain(reinterpret_cast<const uint16_t*>(p)); }

// Four numbers from `p` in the low lanes, four from `q` in the high ones.
INLINE __m256 fours(const float* p, const float* q) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(q), 1);
}
template <class T>
INLINE __m128i sixteen_bits(const T* p, const T* q) {
  return _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)),
                            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(q)));
}
INLINE __m256 fours(const Half* p, const Half* q) { return _mm256_cvtph_ps(sixteen_bits(p, q)); }
INLINE __m256 fours(const Brain* p, const Brain* q) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(sixteen_bits(p, q)), 16));
}

// out[j] holds in[i * stride + j] in lane i, for eight i and four j.
template <class T>
INLINE void turn_four(const T* in, int64_t stride, __m256* out) {
  __m256 rows[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) rows[i] = fours(in + i * stride, in + (i + 4) * stride);
  const __m256 first = _mm256_unpacklo_ps(rows[0], rows[1]);
  const __m256 second = _mm256_unpackhi_ps(rows[0], rows[1]);
  const __m256 third = _mm256_unpacklo_ps(rows[2], rows[3]);
  const __m256 fourth = _mm256_unpackhi_ps(rows[2], rows[3]);
  out[0] = _mm256_shuffle_ps(first, third, 0x44);
  out[1] = _mm256_shuffle_ps(first, third, 0xee);
  out[2] = _mm256_shuffle_ps(second, fourth, 0x44);
  out[3] = _mm256_shuffle_ps(second, fourth, 0xee);
}

}  // namespace
}  // namespace understudy
