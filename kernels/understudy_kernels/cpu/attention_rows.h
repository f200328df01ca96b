// Attention of a few queries over one tile: each lane is a token, so that one query fills them all.
#pragma once
#include "cached.h"
#include "linear_exact.h"

namespace understudy {
namespace {

constexpr int64_t kTurned = 8;  // tokens whose keys are transposed together
constexpr int64_t kStep = 2 * kTurned;
constexpr int64_t kFewQueries = 12;  // of which lanes of queries would leave too many empty

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

INLINE void weigh_rows(const Attention& a, const AttentionTask& task, int64_t start,
                       int64_t num_queries, Workspace& w) {
  const int64_t width = padded(a.cache.value_dim);
  for (int64_t q = 0; q < num_queries; ++q) {
    const int64_t seen = a.lengths[task.row + q / task.num_heads] - start;
    weigh_scores(w.scores + q * kTile, most(0, least(kTile, seen)), a.scale, w.maxima[0][q],
                 w.sums[0][q], w.split + q * width, width);
  }
}

// Whether keys and values are attended where they lie: eight tokens lie together and need no scale.
INLINE bool is_direct(const Cache& c) {
  return c.dtype != 3 && c.block_size % kTurned == 0 && c.key_dim % kTurned == 0 &&
         c.value_dim % kLanes == 0;
}

// The scores of `kRows` queries against eight tokens of each of `keys`, which are turned in
// registers: each lane is a token. Sums run over the key in ascending order.
template <int kRows, int kEights, class T>
INLINE void score_eights(const float* queries, int64_t key_dim, const T* const* keys,
                         int64_t stride, float* scores) {
  __m256 sums[kEights][kRows], turned[kEights][4];
#pragma GCC unroll 16
  for (int q = 0; q < kRows; ++q) {
#pragma GCC unroll 4
    for (int e = 0; e < kEights; ++e) sums[e][q] = _mm256_setzero_ps();
  }
  for (int64_t d = 0; d < key_dim; d += 4) {
#pragma GCC unroll 4
    for (int e = 0; e < kEights; ++e) turn_four(keys[e] + d, stride, turned[e]);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 16
      for (int q = 0; q < kRows; ++q) {
        const __m256 query = _mm256_set1_ps(queries[q * key_dim + d + j]);
#pragma GCC unroll 4
        for (int e = 0; e < kEights; ++e) {
          sums[e][q] = _mm256_fmadd_ps(query, turned[e][j], sums[e][q]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int q = 0; q < kRows; ++q) {
#pragma GCC unroll 4
    for (int e = 0; e < kEights; ++e) _mm256_storeu_ps(scores + q * kTile + 8 * e, sums[e][q]);
  }
}

template <int kRows, int kEights, class T>
INLINE void score_some(int64_t num_rows, const float* queries, int64_t key_dim,
                       const T* const* keys, int64_t stride, float* scores) {
  for (; num_rows >= kRows; num_rows -= kRows) {
    score_eights<kRows, kEights>(queries, key_dim, keys, stride, scores);
    queries += kRows * key_dim, scores += kRows * kTile;
  }
  if constexpr (kRows > 1) {
    if (num_rows > 0) {
      score_some<kRows - 1, kEights>(num_rows, queries, key_dim, keys, stride, scores);
    }
  }
}

// Where the tokens of a tile lie, eight by eight.
template <class T>
struct TileRuns {
  const T* keys[kTile / kTurned];
  const T* values[kTile / kTurned];
  int64_t count;
};

template <class T>
INLINE void find_runs(const Attention& a, const AttentionTask& task, int64_t start, int64_t stop,
                      TileRuns<T>& runs) {
  const Cache& c = a.cache;
  const int32_t* table = a.tables + a.sequences[task.row] * a.table_stride;
  runs.count = most(0, least(kTile, stop - start));
  int64_t at = start / c.block_size, token = start % c.block_size;
  for (int64_t i = 0; i < runs.count; i += kTurned) {
    const int64_t key = offset_of(c.key_strides, table[at], token, task.kv_head);
    const int64_t value = offset_of(c.value_strides, table[at], token, task.kv_head);
    runs.keys[i / kTurned] = static_cast<const T*>(c.keys) + key;
    runs.values[i / kTurned] = static_cast<const T*>(c.values) + value;
    token += kTurned;
    if (token == c.block_size) ++at, token = 0;
  }
}

// Fetches rows [i, i + kStep) of those that lie in `runs`.
template <class T>
INLINE void fetch_step(const T* const* runs, int64_t stride, int64_t width, int64_t i,
                       int64_t count) {
  constexpr int64_t line = 64 / sizeof(T);
  for (const int64_t stop = least(count, i + kStep); i < stop; ++i) {
    const T* row = runs[i / kTurned] + i % kTurned * stride;
    for (int64_t at = 0; at < width; at += line) {
      _mm_prefetch(reinterpret_cast<const char*>(row + at), _MM_HINT_T0);
    }
  }
}

// Few queries do not fill the processor with sums of eight tokens; sixteen do.
template <class T>
INLINE void score_step(const Cache& c, const TileRuns<T>& runs, int64_t i, int64_t num_queries,
                       Workspace& w) {
  const T* const* keys = runs.keys + i / kTurned;
  const int64_t stride = c.key_strides[1];
  float* scores = w.scores + i;
  if (num_queries <= 3 && i + kTurned < runs.count) {
    return score_some<3, 2>(num_queries, w.queries, c.key_dim, keys, stride, scores);
  }
  score_some<6, 1>(num_queries, w.queries, c.key_dim, keys, stride, scores);
  if (i + kTurned < runs.count) {
    score_some<6, 1>(num_queries, w.queries, c.key_dim, keys + 1, stride, scores + kTurned);
  }
}

template <class T>
INLINE void add_step(const Cache& c, const TileRuns<T>& runs, int64_t i, int64_t num_queries,
                     Workspace& w) {
  const T* const* values = runs.values + i / kTurned;
  const int64_t stride = c.value_strides[1], count = least(kStep, runs.count - i);
  const bool is_one = count <= kTurned || values[1] == values[0] + kTurned * stride;
  for (int64_t k = 0, run; k < count; k += run) {
    run = is_one ? count : least(kTurned, count - k);
    multiply_columns(w.scores + i + k, kTile, values[k / kTurned], stride, kLanes,
                     c.value_dim / kLanes, run, w.split, c.value_dim, num_queries);
  }
}

// Attends to a tile where it lies. Memory answers late, so what comes next is fetched by the way:
// values while keys are scored, keys of the next tile, up to `limit`, while values are added.
template <class T>
void attend_in_place(const Attention& a, const AttentionTask& task, int64_t start, int64_t count,
                     int64_t limit, int64_t num_queries, Workspace& w) {
  const Cache& c = a.cache;
  TileRuns<T> now, next;
  find_runs(a, task, start, start + count, now);
  find_runs(a, task, start + kTile, limit, next);
  // The block has room for all eight; what lies beyond `count` gets a weight of zero.
  for (int64_t i = 0; i < count; i += kStep) {
    fetch_step(now.values, c.value_strides[1], c.value_dim, i, count);
    score_step(c, now, i, num_queries, w);
  }
  weigh_rows(a, task, start, num_queries, w);
  for (int64_t i = 0; i < count; i += kStep) {
    fetch_step(next.keys, c.key_strides[1], c.key_dim, i, next.count);
    add_step(c, now, i, num_queries, w);
  }
}

// Opens keys (transposed) and values of `count` tokens from `start` where they cannot be attended
// as they lie; the rest of the tile is zero.
INLINE void open_tile(const Attention& a, const AttentionTask& task, int64_t start, int64_t count,
                      Workspace& w) {
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
      __m256 turned[kTurned];
      turn_four(w.tokens + d, key_width, turned);
      turn_four(w.tokens + d + 4, key_width, turned + 4);
      for (int64_t j = 0; j < kTurned; ++j) {
        _mm256_storeu_ps(w.keys + (d + j) * kTile + i + 1 - kTurned, turned[j]);
      }
    }
  }
}

// Attends to `count` tokens from `start`.
INLINE void attend_rows(const Attention& a, const AttentionTask& task, int64_t start,
                        int64_t count, int64_t limit, int64_t num_queries, Workspace& w) {
  const Cache& c = a.cache;
  if (is_direct(c)) {
    const auto attend = c.dtype == 0   ? attend_in_place<float>
                        : c.dtype == 1 ? attend_in_place<Brain>
                                       : attend_in_place<Half>;
    return attend(a, task, start, count, limit, num_queries, w);
  }
  const int64_t width = padded(c.value_dim);
  open_tile(a, task, start, count, w);
  __builtin_memset(w.scores, 0, num_queries * kTile * sizeof(float));
  multiply_columns(w.queries, c.key_dim, w.keys, kTile, kLanes, (count + kLanes - 1) / kLanes,
                   c.key_dim, w.scores, kTile, num_queries);
  weigh_rows(a, task, start, num_queries, w);
  multiply_columns(w.scores, kTile, w.values, width, kLanes, width / kLanes, count, w.split, width,
                   num_queries);
}

}  // namespace
}  // namespace understudy
