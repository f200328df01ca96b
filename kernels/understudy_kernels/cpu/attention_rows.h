// Attention of a few queries over one tile: each lane is a token, so that one query fills them all.
#pragma once
#include "cached.h"
#include "linear.h"

namespace understudy {
namespace {

constexpr int64_t kTurned = 8;  // tokens whose keys are transposed together

// What a task works in; a tile's keys lie as its kind of attention wants them.
struct Workspace {
  float* keys;     // (padded key_dim, kTile) for a few queries, (kTile, padded key_dim) for many
  float* values;   // (kTile, padded value_dim)
  float* queries;  // (kQueryTile, key_dim), or (key_dim, kLanes) of each sixteen
  float* scores;   // (kQueryTile, kTile), or (kTile, kLanes)
  float* tokens;   // (kTurned, padded key_dim)
  float* split;    // (kQueryTile, padded value_dim), the sums of the current split; or as queries
  float* total;    // likewise, of the whole
  float maxima[2][kQueryTile], sums[2][kQueryTile];  // of the split, of the whole
};

INLINE int64_t workspace_floats(const Cache& cache) {
  const int64_t key_width = padded(cache.key_dim), width = padded(cache.value_dim);
  return key_width * kTile + kTile * width + kQueryTile * cache.key_dim + kQueryTile * kTile +
         kTurned * key_width + 2 * kQueryTile * width;
}

INLINE void open_workspace(const Cache& cache, float* memory, Workspace& w) {
  const int64_t key_width = padded(cache.key_dim), width = padded(cache.value_dim);
  w.keys = memory;
  w.values = w.keys + key_width * kTile;
  w.queries = w.values + kTile * width;
  w.scores = w.queries + kQueryTile * cache.key_dim;
  w.tokens = w.scores + kQueryTile * kTile;
  w.split = w.tokens + kTurned * key_width;
  w.total = w.split + kQueryTile * width;
}

// Whether eight tokens of the cache can be transposed where they are.
INLINE bool is_direct(const Cache& c) {
  return c.dtype != 3 && c.block_size % kTurned == 0 && c.key_dim % kTurned == 0 &&
         c.value_dim % kLanes == 0;
}

// Reads keys (transposed) and values of `count` tokens from `start`; the rest of the tile is zero.
// Tokens of the next tile are fetched up to `limit`.
template <int64_t kDtype>
INLINE void turn_tile_of(const Attention& a, const AttentionTask& task, int64_t start,
                         int64_t count, int64_t limit, Workspace& w) {
  const Cache& c = a.cache;
  const int32_t* table = a.tables + a.sequences[task.row] * a.table_stride;
  for (int64_t i = 0; i < kTile; i += kTurned) {
    if (i >= count) {
      for (int64_t d = 0; d < c.key_dim; ++d) {
        __builtin_memset(w.keys + d * kTile + i, 0, kTurned * sizeof(float));
      }
      __builtin_memset(w.values + i * c.value_dim, 0, kTurned * c.value_dim * sizeof(float));
      continue;
    }
    fetch_ahead<kDtype>(a, task, start + kTile + i, least(limit, start + kTile + i + kTurned));
    // The block has room for all eight; what lies beyond `count` gets a weight of zero.
    const int64_t block = table[(start + i) / c.block_size], token = (start + i) % c.block_size;
    const int64_t key = offset_of(c.key_strides, block, token, task.kv_head);
    for (int64_t d = 0; d < c.key_dim; d += kTurned) {
      transpose_eight<kDtype>(c.keys, key + d, c.key_strides[1], w.keys + d * kTile + i, kTile);
    }
    const int64_t value = offset_of(c.value_strides, block, token, task.kv_head);
    for (int64_t t = 0; t < kTurned; ++t) {
      float* to = w.values + (i + t) * c.value_dim;
      if (i + t < count) {
        read_cached(c.values, kDtype, value + t * c.value_strides[1], c.value_dim, 1.0f, to);
      } else {
        __builtin_memset(to, 0, c.value_dim * sizeof(float));
      }
    }
  }
}

// As above, for caches in which eight tokens do not lie together or have scales.
INLINE void turn_any_tile(const Attention& a, const AttentionTask& task, int64_t start,
                          int64_t count, Workspace& w) {
  const Cache& c = a.cache;
  const int64_t key_width = padded(c.key_dim), width = padded(c.value_dim), head = task.kv_head;
  const int32_t* table = a.tables + a.sequences[task.row] * a.table_stride;
  for (int64_t i = 0; i < kTile; ++i) {
    float* key = w.tokens + i % kTurned * key_width;
    float* value = w.values + i * width;
    if (i < count) {
      const int64_t block = table[(start + i) / c.block_size], token = (start + i) % c.block_size;
      read_cached(c.keys, c.dtype, offset_of(c.key_strides, block, token, head), c.key_dim,
                  scale_at(c.key_scales, c.key_scale_strides, block, token, head), key);
      read_cached(c.values, c.dtype, offset_of(c.value_strides, block, token, head), c.value_dim,
                  scale_at(c.value_scales, c.value_scale_strides, block, token, head), value);
    } else {
      __builtin_memset(key, 0, key_width * sizeof(float));
      __builtin_memset(value, 0, width * sizeof(float));
    }
    if (i % kTurned + 1 < kTurned) continue;
    for (int64_t d = 0; d < key_width; d += kTurned) {
      transpose_eight<0>(w.tokens, d, key_width, w.keys + d * kTile + i + 1 - kTurned, kTile);
    }
  }
}

INLINE void turn_tile(const Attention& a, const AttentionTask& task, int64_t start, int64_t count,
                      int64_t limit, Workspace& w) {
  if (!is_direct(a.cache)) return turn_any_tile(a, task, start, count, w);
  if (a.cache.dtype == 0) return turn_tile_of<0>(a, task, start, count, limit, w);
  if (a.cache.dtype == 1) return turn_tile_of<1>(a, task, start, count, limit, w);
  turn_tile_of<2>(a, task, start, count, limit, w);
}

// Scales the visible scores; returns the greatest of them and of `seen`. What is not a number is
// passed over here and reaches the weights.
INLINE float scale_and_find_top(float* scores, int64_t visible, float scale, float seen) {
  Floats tops = splat(seen);
  int64_t i = 0;
  for (; i + kLanes <= visible; i += kLanes) {
    const Floats scaled = multiply(load(scores + i), splat(scale));
    store(scores + i, scaled);
    tops = maximum(scaled, tops);
  }
  float top = largest_lane(tops);
  for (; i < visible; ++i) {
    scores[i] *= scale;
    top = scores[i] > top ? scores[i] : top;
  }
  return top;
}

// Turns one row of scores into weights and folds the running sum of the split.
INLINE void weigh_scores(float* scores, int64_t visible, float scale, float& maximum_seen,
                         float& sum, float* accumulated, int64_t width) {
  const float top = scale_and_find_top(scores, visible, scale, maximum_seen);
  Floats weights_sum = splat(0.0f);
  for (int64_t i = 0; i < kTile; i += kLanes) {
    const Floats weight =
        keep_first(exponential(subtract(load(scores + i), splat(top))), visible - i);
    store(scores + i, weight);
    weights_sum = add(weights_sum, weight);
  }
  alignas(64) float factor[kLanes];
  store(factor, exponential(splat(maximum_seen - top)));
  sum = sum * factor[0] + sum_of(weights_sum);
  maximum_seen = top;
  for (int64_t i = 0; i < width; i += kLanes) {
    store(accumulated + i, multiply(load(accumulated + i), splat(factor[0])));
  }
}

// Attends to `count` tokens from `start`.
INLINE void attend_rows(const Attention& a, const AttentionTask& task, int64_t start,
                        int64_t count, int64_t limit, int64_t num_queries, Workspace& w) {
  const int64_t key_dim = a.cache.key_dim, width = padded(a.cache.value_dim);
  turn_tile(a, task, start, count, limit, w);
  __builtin_memset(w.scores, 0, num_queries * kTile * sizeof(float));
  multiply_columns(w.queries, key_dim, w.keys, kTile, kLanes, (count + kLanes - 1) / kLanes,
                   key_dim, w.scores, kTile, num_queries);
  for (int64_t q = 0; q < num_queries; ++q) {
    const int64_t seen = a.lengths[task.row + q / task.num_heads] - start;
    weigh_scores(w.scores + q * kTile, most(0, least(kTile, seen)), a.scale, w.maxima[0][q],
                 w.sums[0][q], w.split + q * width, width);
  }
  multiply_columns(w.scores, kTile, w.values, width, kLanes, width / kLanes, count, w.split, width,
                   num_queries);
}

}  // namespace
}  // namespace understudy
