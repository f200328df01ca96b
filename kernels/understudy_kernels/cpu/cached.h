// Reading keys and values out of the paged cache, whatever they are stored as.
#pragma once
#include "elementwise.h"

namespace understudy {
namespace {

constexpr int64_t kTile = 64;  // tokens that are read and weighed together

INLINE int64_t padded(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

INLINE Floats load_cached(const void* base, int64_t dtype, int64_t at, float scale) {
  if (dtype == 0) return load(static_cast<const float*>(base) + at);
  if (dtype == 1) return load_brain(static_cast<const uint16_t*>(base) + at);
  if (dtype == 2) return load_half(static_cast<const uint16_t*>(base) + at);
  return multiply(load_signed8(static_cast<const int8_t*>(base) + at), splat(scale));
}

INLINE float cached_at(const void* base, int64_t dtype, int64_t at, float scale) {
  if (dtype == 0) return static_cast<const float*>(base)[at];
  if (dtype == 3) return static_cast<float>(static_cast<const int8_t*>(base)[at]) * scale;
  const uint16_t bits = static_cast<const uint16_t*>(base)[at];
  if (dtype == 2) return _cvtsh_ss(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, 4);
  return value;
}

// Reads one head's vector of one token as floats; `out` is padded to lanes with zeros.
INLINE void read_cached(const void* base, int64_t dtype, int64_t at, int64_t size, float scale,
                        float* out) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(out + i, load_cached(base, dtype, at + i, scale));
  for (; i < size; ++i) out[i] = cached_at(base, dtype, at + i, scale);
  for (; i < padded(size); ++i) out[i] = 0.0f;
}

INLINE float scale_at(const float* scales, const int64_t* strides, int64_t block, int64_t token,
                      int64_t head) {
  return scales ? scales[offset_of(strides, block, token, head)] : 1.0f;
}

// Fetches keys and values of a few tokens that are read one tile later. Blocks lie apart and a head
// takes a part of each token, so that the processor does not foresee the next line by itself.
template <int64_t kDtype>
INLINE void fetch_ahead(const Attention& a, const AttentionTask& task, int64_t from, int64_t stop) {
  constexpr int64_t value_bytes = kDtype == 0 ? 4 : kDtype == 3 ? 1 : 2, line = 64;
  const Cache& c = a.cache;
  const int32_t* table = a.tables + a.sequences[task.row] * a.table_stride;
  const char* keys = static_cast<const char*>(c.keys);
  const char* values = static_cast<const char*>(c.values);
  for (int64_t i = from; i < stop; ++i) {
    const int64_t block = table[i / c.block_size], token = i % c.block_size;
    const int64_t key = offset_of(c.key_strides, block, token, task.kv_head) * value_bytes;
    const int64_t value = offset_of(c.value_strides, block, token, task.kv_head) * value_bytes;
    for (int64_t at = 0; at < c.key_dim * value_bytes; at += line) {
      _mm_prefetch(keys + key + at, _MM_HINT_T0);
    }
    for (int64_t at = 0; at < c.value_dim * value_bytes; at += line) {
      _mm_prefetch(values + value + at, _MM_HINT_T0);
    }
  }
}

// Reads keys and values of `count` tokens from `start`, (kTile, padded dim) each; the rest of the
// tile is zero. Tokens of the next tile are fetched up to `limit`.
template <int64_t kDtype>
INLINE void read_rows_of(const Attention& a, const AttentionTask& task, int64_t start,
                         int64_t count, int64_t limit, float* keys, float* values) {
  const Cache& c = a.cache;
  const int64_t key_width = padded(c.key_dim), width = padded(c.value_dim), head = task.kv_head;
  const int32_t* table = a.tables + a.sequences[task.row] * a.table_stride;
  for (int64_t i = 0; i < count; ++i) {
    fetch_ahead<kDtype>(a, task, start + kTile + i, least(limit, start + kTile + i + 1));
    const int64_t block = table[(start + i) / c.block_size], token = (start + i) % c.block_size;
    read_cached(c.keys, kDtype, offset_of(c.key_strides, block, token, head), c.key_dim,
                scale_at(c.key_scales, c.key_scale_strides, block, token, head),
                keys + i * key_width);
    read_cached(c.values, kDtype, offset_of(c.value_strides, block, token, head), c.value_dim,
                scale_at(c.value_scales, c.value_scale_strides, block, token, head),
                values + i * width);
  }
  __builtin_memset(keys + count * key_width, 0, (kTile - count) * key_width * sizeof(float));
  __builtin_memset(values + count * width, 0, (kTile - count) * width * sizeof(float));
}

void read_rows(const Attention& a, const AttentionTask& task, int64_t start, int64_t count,
               int64_t limit, float* keys, float* values) {
  switch (a.cache.dtype) {
    case 0:
      return read_rows_of<0>(a, task, start, count, limit, keys, values);
    case 1:
      return read_rows_of<1>(a, task, start, count, limit, keys, values);
    case 2:
      return read_rows_of<2>(a, task, start, count, limit, keys, values);
    default:
      return read_rows_of<3>(a, task, start, count, limit, keys, values);
  }
}

}  // namespace
}  // namespace understudy
