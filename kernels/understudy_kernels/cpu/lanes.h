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

// Eight cached values of 16 or 32 bits; the numbers are those of `Cache::dtype`.
template <int64_t kDtype>
INLINE __m256 eight_at(const void* base, int64_t at) {
  if constexpr (kDtype == 0) {
    return _mm256_loadu_ps(static_cast<const float*>(base) + at);
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(base) + at;
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if constexpr (kDtype == 2) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
}

// out[j][i] = in[i][j], eight by eight.
template <int64_t kDtype>
INLINE void transpose_eight(const void* in, int64_t at, int64_t in_stride, float* out,
                            int64_t out_stride) {
  __m256 rows[8], pairs[8], quads[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) rows[i] = eight_at<kDtype>(in, at + i * in_stride);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * out_stride, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * out_stride,
                     _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31));
  }
}

}  // namespace
}  // namespace understudy
