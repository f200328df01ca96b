// The AVX-512 intrinsics the kernels use, spelt out lane by lane, so that a machine without them
// can check what the AVX-512 version computes. Included before the kernels by test_avx512.py.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __AVX512VNNI__ 1  // what lanes.h asks for

template <class To, class From>
static inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
struct Lanes32 { int32_t at[16]; };
struct Lanes16 { uint16_t at[32]; };
struct Lanes8 { uint8_t at[64]; };
struct LanesF { float at[16]; };

template <class F>
static inline __m512 each_float(__m512 a, __m512 b, F f) {
  auto x = same_bits<LanesF>(a), y = same_bits<LanesF>(b);
  for (int i = 0; i < 16; ++i) x.at[i] = f(x.at[i], y.at[i]);
  return same_bits<__m512>(x);
}
template <class F>
static inline __m512i each_int(__m512i a, __m512i b, F f) {
  auto x = same_bits<Lanes32>(a), y = same_bits<Lanes32>(b);
  for (int i = 0; i < 16; ++i) x.at[i] = f(x.at[i], y.at[i]);
  return same_bits<__m512i>(x);
}

#define _mm512_add_ps emulated_add_ps
#define _mm512_sub_ps emulated_sub_ps
#define _mm512_mul_ps emulated_mul_ps
#define _mm512_div_ps emulated_div_ps
#define _mm512_min_ps emulated_min_ps
#define _mm512_max_ps emulated_max_ps
#define _mm512_fmadd_ps emulated_fmadd_ps
static inline __m512 emulated_add_ps(__m512 a, __m512 b) { return each_float(a, b, [](float x, float y) { return x + y; }); }
static inline __m512 emulated_sub_ps(__m512 a, __m512 b) { return each_float(a, b, [](float x, float y) { return x - y; }); }
static inline __m512 emulated_mul_ps(__m512 a, __m512 b) { return each_float(a, b, [](float x, float y) { return x * y; }); }
static inline __m512 emulated_div_ps(__m512 a, __m512 b) { return each_float(a, b, [](float x, float y) { return x / y; }); }
static inline __m512 emulated_min_ps(__m512 a, __m512 b) { return each_float(a, b, [](float x, float y) { return x < y ? x : y; }); }
static inline __m512 emulated_max_ps(__m512 a, __m512 b) { return each_float(a, b, [](float x, float y) { return x > y ? x : y; }); }
static inline __m512 emulated_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  auto x = same_bits<LanesF>(a), y = same_bits<LanesF>(b), z = same_bits<LanesF>(c);
  for (int i = 0; i < 16; ++i) x.at[i] = std::fma(x.at[i], y.at[i], z.at[i]);
  return same_bits<__m512>(x);
}

#define _mm512_set1_ps emulated_set1_ps
#define _mm512_set1_epi32 emulated_set1_epi32
#define _mm512_set1_epi8 emulated_set1_epi8
#define _mm512_setzero_si512() emulated_set1_epi32(0)
#define _mm512_loadu_ps(p) emulated_load<__m512>(p)
#define _mm512_loadu_si512(p) emulated_load<__m512i>(p)
#define _mm512_storeu_ps emulated_store
#define _mm512_storeu_si512 emulated_store
static inline __m512 emulated_set1_ps(float v) { LanesF x; for (float& lane : x.at) lane = v; return same_bits<__m512>(x); }
static inline __m512i emulated_set1_epi32(int32_t v) { Lanes32 x; for (int32_t& lane : x.at) lane = v; return same_bits<__m512i>(x); }
static inline __m512i emulated_set1_epi8(char v) { Lanes8 x; for (uint8_t& lane : x.at) lane = static_cast<uint8_t>(v); return same_bits<__m512i>(x); }
template <class V>
static inline V emulated_load(const void* p) { V v; std::memcpy(&v, p, sizeof(V)); return v; }
template <class V>
static inline void emulated_store(void* p, V v) { std::memcpy(p, &v, sizeof(V)); }

#define _mm512_roundscale_ps(a, mode) emulated_round_ps(a)
#define _mm512_cvtps_epi32 emulated_cvtps_epi32
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_castps_si512(a) same_bits<__m512i>(a)
#define _mm512_castsi512_ps(a) same_bits<__m512>(a)
#define _mm512_maskz_mov_ps emulated_maskz_mov_ps
#define _mm512_reduce_add_ps emulated_reduce_add_ps
static inline __m512 emulated_round_ps(__m512 a) { return each_float(a, a, [](float x, float) { return std::nearbyint(x); }); }
static inline __m512i emulated_cvtps_epi32(__m512 a) {
  auto x = same_bits<LanesF>(a);
  Lanes32 y;
  for (int i = 0; i < 16; ++i) y.at[i] = _mm_cvtss_si32(_mm_set_ss(x.at[i]));
  return same_bits<__m512i>(y);
}
static inline __m512 emulated_cvtepi32_ps(__m512i a) {
  auto x = same_bits<Lanes32>(a);
  LanesF y;
  for (int i = 0; i < 16; ++i) y.at[i] = static_cast<float>(x.at[i]);
  return same_bits<__m512>(y);
}
static inline __m512 emulated_maskz_mov_ps(__mmask16 mask, __m512 a) {
  auto x = same_bits<LanesF>(a);
  for (int i = 0; i < 16; ++i) x.at[i] = mask >> i & 1 ? x.at[i] : 0.0f;
  return same_bits<__m512>(x);
}
#define _mm512_cmp_ps_mask(a, b, predicate) emulated_less_mask(a, b)
#define _mm512_mask_blend_ps emulated_mask_blend_ps
static inline __mmask16 emulated_less_mask(__m512 a, __m512 b) {
  auto x = same_bits<LanesF>(a), y = same_bits<LanesF>(b);
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= x.at[i] < y.at[i] ? 1u << i : 0u;
  return static_cast<__mmask16>(mask);
}
static inline __m512 emulated_mask_blend_ps(__mmask16 mask, __m512 a, __m512 b) {
  auto x = same_bits<LanesF>(a), y = same_bits<LanesF>(b);
  for (int i = 0; i < 16; ++i) x.at[i] = mask >> i & 1 ? y.at[i] : x.at[i];
  return same_bits<__m512>(x);
}
static inline float emulated_reduce_add_ps(__m512 a) {
  auto x = same_bits<LanesF>(a);
  float total = 0.0f;
  for (float lane : x.at) total += lane;
  return total;
}

#define _mm512_add_epi32 emulated_add_epi32
#define _mm512_max_epi32 emulated_max_epi32
#define _mm512_and_si512 emulated_and
#define _mm512_or_si512 emulated_or
#define _mm512_xor_si512 emulated_xor
#define _mm512_slli_epi32 emulated_slli_epi32
#define _mm512_srli_epi32 emulated_srli_epi32
#define _mm512_srai_epi32 emulated_srai_epi32
#define _mm512_slli_epi16 emulated_slli_epi16
#define _mm512_srli_epi16 emulated_srli_epi16
static inline __m512i emulated_add_epi32(__m512i a, __m512i b) { return each_int(a, b, [](int32_t x, int32_t y) { return x + y; }); }
static inline __m512i emulated_max_epi32(__m512i a, __m512i b) { return each_int(a, b, [](int32_t x, int32_t y) { return x > y ? x : y; }); }
static inline __m512i emulated_and(__m512i a, __m512i b) { return each_int(a, b, [](int32_t x, int32_t y) { return x & y; }); }
static inline __m512i emulated_or(__m512i a, __m512i b) { return each_int(a, b, [](int32_t x, int32_t y) { return x | y; }); }
static inline __m512i emulated_xor(__m512i a, __m512i b) { return each_int(a, b, [](int32_t x, int32_t y) { return x ^ y; }); }
static inline __m512i emulated_slli_epi32(__m512i a, int n) { return each_int(a, a, [n](int32_t x, int32_t) { return static_cast<int32_t>(static_cast<uint32_t>(x) << n); }); }
static inline __m512i emulated_srli_epi32(__m512i a, int n) { return each_int(a, a, [n](int32_t x, int32_t) { return static_cast<int32_t>(static_cast<uint32_t>(x) >> n); }); }
static inline __m512i emulated_srai_epi32(__m512i a, int n) { return each_int(a, a, [n](int32_t x, int32_t) { return x >> n; }); }
template <class F>
static inline __m512i each_short(__m512i a, F f) {
  auto x = same_bits<Lanes16>(a);
  for (uint16_t& lane : x.at) lane = static_cast<uint16_t>(f(lane));
  return same_bits<__m512i>(x);
}
static inline __m512i emulated_slli_epi16(__m512i a, int n) { return each_short(a, [n](uint16_t x) { return x << n; }); }
static inline __m512i emulated_srli_epi16(__m512i a, int n) { return each_short(a, [n](uint16_t x) { return x >> n; }); }

#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtsepi32_epi8 emulated_cvtsepi32_epi8
#define _mm512_dpbusd_epi32 emulated_dpbusd_epi32
template <class From, class Source>
static inline __m512i widen(Source bits) {
  From from[16];
  std::memcpy(from, &bits, sizeof(from));
  Lanes32 x;
  for (int i = 0; i < 16; ++i) x.at[i] = from[i];
  return same_bits<__m512i>(x);
}
static inline __m512 emulated_cvtph_ps(__m256i a) {
  uint16_t from[16];
  std::memcpy(from, &a, sizeof(from));
  LanesF x;
  for (int i = 0; i < 16; ++i) x.at[i] = _cvtsh_ss(from[i]);
  return same_bits<__m512>(x);
}
static inline __m512i emulated_cvtepu16_epi32(__m256i a) { return widen<uint16_t>(a); }
static inline __m512i emulated_cvtepu8_epi32(__m128i a) { return widen<uint8_t>(a); }
static inline __m512i emulated_cvtepi8_epi32(__m128i a) { return widen<int8_t>(a); }
static inline __m128i emulated_cvtsepi32_epi8(__m512i a) {
  auto x = same_bits<Lanes32>(a);
  int8_t to[16];
  for (int i = 0; i < 16; ++i) to[i] = static_cast<int8_t>(x.at[i] > 127 ? 127 : x.at[i] < -128 ? -128 : x.at[i]);
  __m128i result;
  std::memcpy(&result, to, sizeof(to));
  return result;
}
static inline __m512i emulated_dpbusd_epi32(__m512i sum, __m512i unsigned_bytes, __m512i signed_bytes) {
  auto x = same_bits<Lanes32>(sum);
  auto u = same_bits<Lanes8>(unsigned_bytes), s = same_bits<Lanes8>(signed_bytes);
  for (int i = 0; i < 64; ++i) x.at[i / 4] += u.at[i] * static_cast<int8_t>(s.at[i]);
  return same_bits<__m512i>(x);
}
