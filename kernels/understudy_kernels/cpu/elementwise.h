// What lies between the matrices: quantising activations, norms, SwiGLU's inner product, rotation.
#pragma once
#include "lanes.h"

namespace understudy {
namespace {

INLINE float largest_magnitude(const float* x, int64_t count) {
  uint32_t top = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, 4);
    bits &= 0x7fffffffu;
    top = bits > top ? bits : top;
  }
  float magnitude;
  __builtin_memcpy(&magnitude, &top, 4);
  return magnitude;
}

// A broken activation must reach the logits, where it is noticed.
INLINE void quantise_block(const float* x, QuantisedBlock& block) {
  const Floats halves[2] = {load(x), load(x + kLanes)};
  alignas(64) float magnitudes[kLanes];
  store(magnitudes, greater_magnitude(halves[0], halves[1]));
  const float magnitude = largest_magnitude(magnitudes, kLanes);
  if (!(magnitude <= __FLT_MAX__)) {
    const float broken = __builtin_nanf("");
    block = {{}, broken, broken, {broken, broken}};
    return;
  }
  const Floats inverse = splat(magnitude > 0.0f ? 127.0f / magnitude : 0.0f);
  float sums[2];
  for (int half = 0; half < 2; ++half) {
    const Floats rounded = round(multiply(halves[half], inverse));
    store_signed8(block.values + half * kLanes, rounded);
    sums[half] = integral_sum(rounded);
  }
  block.scale = magnitude / 127.0f;
  block.half_sums[0] = block.scale * sums[0];
  block.half_sums[1] = block.scale * sums[1];
  block.sum = block.scale * (sums[0] + sums[1]);
}

void quantise(const float* x, int64_t stride, int64_t begin, int64_t end, int64_t num_in,
              int64_t num_rows, QuantisedBlock* blocks) {
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t b = 0; b * kBlock < num_in; ++b) {
      quantise_block(x + t * stride + b * kBlock, blocks[b * num_rows + t]);
    }
  }
}

INLINE float inverse_root_mean_square(const float* x, int64_t size, float eps) {
  Floats squares = splat(0.0f);
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats v = load_first(x + i, size - i);
    squares = fma(v, v, squares);
  }
  return 1.0f / __builtin_sqrtf(sum_of(squares) / static_cast<float>(size) + eps);
}

void rms_norm(const float* x, const float* weight, int64_t size, float eps, float* out) {
  const Floats factor = splat(inverse_root_mean_square(x, size, eps));
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats v = multiply(load_first(x + i, size - i), factor);
    store_first(out + i, multiply(v, load_first(weight + i, size - i)), size - i);
  }
}

void add_rows(const float* a, const float* b, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = a[i] + b[i];
}

void add_scaled(const float* x, float scale, int64_t size, float* total) {
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats scaled = multiply(load_first(x + i, size - i), splat(scale));
    store_first(total + i, add(load_first(total + i, size - i), scaled), size - i);
  }
}

void silu_multiply(const float* gate, const float* up, int64_t size, float* out) {
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats g = load_first(gate + i, size - i);
    const Floats negated = multiply(g, splat(-1.0f));
    const Floats silu = divide(g, add(splat(1.0f), exponential(negated)));
    store_first(out + i, multiply(silu, load_first(up + i, size - i)), size - i);
  }
}

INLINE uint16_t to_brain(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // to nearest even
}

// Stores `size` values as the cache's dtype; int8 keeps one scale per token and head.
INLINE void store_cached(void* base, int64_t dtype, int64_t at, const float* x, int64_t size,
                         float* scale) {
  if (dtype == 0) {
    __builtin_memcpy(static_cast<float*>(base) + at, x, size * sizeof(float));
  } else if (dtype == 1) {
    for (int64_t i = 0; i < size; ++i) static_cast<uint16_t*>(base)[at + i] = to_brain(x[i]);
  } else if (dtype == 2) {
    for (int64_t i = 0; i < size; ++i) {
      static_cast<uint16_t*>(base)[at + i] = _cvtss_sh(x[i], _MM_FROUND_TO_NEAREST_INT);
    }
  } else {
    const float magnitude = largest_magnitude(x, size);
    const float inverse = magnitude > 0.0f ? 127.0f / magnitude : 0.0f;
    *scale = magnitude / 127.0f;
    for (int64_t i = 0; i < size; ++i) {
      static_cast<int8_t*>(base)[at + i] =
          static_cast<int8_t>(__builtin_nearbyintf(x[i] * inverse));
    }
  }
}

INLINE int64_t offset_of(const int64_t* strides, int64_t block, int64_t token, int64_t head) {
  return block * strides[0] + token * strides[1] + head * strides[2];
}

INLINE void rotate_head(const float* x, const float* norm, const float* cosine, const float* sine,
                        int64_t size, float eps, float* scratch, float* out) {
  if (norm) {
    rms_norm(x, norm, size, eps, scratch);
    x = scratch;
  }
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float first = x[i], second = x[i + half];
    out[i] = first * cosine[i] - second * sine[i];
    out[i + half] = second * cosine[i] + first * sine[i];
  }
}

constexpr int64_t kMaxHeadDim = 1024;

void rotate(const Rotation& r, int64_t begin, int64_t end) {
  const Cache& cache = r.cache;
  const int64_t size = cache.key_dim, num_kv = cache.num_kv_heads;
  alignas(64) float scratch[kMaxHeadDim], rotated[kMaxHeadDim];
  for (int64_t t = begin; t < end; ++t) {
    const float* row = r.projected + t * (r.num_heads + 2 * num_kv) * size;
    const float* cosine = r.cosine + t * (size / 2);
    const float* sine = r.sine + t * (size / 2);
    for (int64_t h = 0; h < r.num_heads; ++h) {
      rotate_head(row + h * size, r.query_norm, cosine, sine, size, r.eps, scratch,
                  r.query + (t * r.num_heads + h) * size);
    }
    const int64_t block = r.slots[t] / cache.block_size, token = r.slots[t] % cache.block_size;
    for (int64_t h = 0; h < num_kv; ++h) {
      const float* key = row + (r.num_heads + h) * size;
      float* key_scale =
          cache.key_scales ? cache.key_scales + offset_of(cache.key_scale_strides, block, token, h)
                           : nullptr;
      float* value_scale =
          cache.value_scales
              ? cache.value_scales + offset_of(cache.value_scale_strides, block, token, h)
              : nullptr;
      rotate_head(key, r.key_norm, cosine, sine, size, r.eps, scratch, rotated);
      store_cached(cache.keys, cache.dtype, offset_of(cache.key_strides, block, token, h), rotated,
                   size, key_scale);
      store_cached(cache.values, cache.dtype, offset_of(cache.value_strides, block, token, h),
                   key + num_kv * size, size, value_scale);
    }
  }
}

}  // namespace
}  // namespace understudy
