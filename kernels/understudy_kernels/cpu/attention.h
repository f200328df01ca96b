// Attention over paged keys and values, tiles of 64 tokens at a time with a running maximum.
//
// Tiles and splits start at fixed positions of the sequence, so a row's sums are the same whether
// it is decoded alone or is one of a prompt's thousand rows.
#pragma once
#include "elementwise.h"
#include "linear.h"

namespace understudy {
namespace {

constexpr int64_t kTile = 64;
constexpr float kNothingSeen = -1e30f;  // finite, so that differences of maxima are numbers

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

constexpr int64_t kTurned = 8;  // tokens whose keys are transposed together
constexpr int64_t kRuns = kTile / kTurned;

struct Workspace {
  float* keys;     // (padded key_dim, kTile)
  float* values;   // (kTile, padded value_dim)
  float* queries;  // (kQueryTile, key_dim)
  float* scores;   // (kQueryTile, kTile)
  float* tokens;   // (kTurned, padded key_dim)
  float* split;    // (kQueryTile, padded value_dim), the sums of the current split
  float* total;    // (kQueryTile, padded value_dim)
  float maxima[2][kQueryTile], sums[2][kQueryTile];  // of the split, of the whole
  const float* runs[kRuns];  // values of eight tokens each where they are cached, or null
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

INLINE float scale_at(const float* scales, const int64_t* strides, int64_t block, int64_t token,
                      int64_t head) {
  return scales ? scales[offset_of(strides, block, token, head)] : 1.0f;
}

// Whether eight tokens of a float32 cache can be read where they are.
INLINE bool is_direct(const Cache& c) {
  return c.dtype == 0 && c.block_size % kTurned == 0 && c.key_dim % kTurned == 0 &&
         c.value_dim % kLanes == 0;
}

// As read_tile: keys are transposed straight out of the cache. A few queries take the values from
// there too; many are worth a copy that lies closer together.
INLINE void point_at_tile(const Attention& a, const AttentionTask& task, int64_t start,
                          int64_t count, bool is_copying, Workspace& w) {
  const Cache& c = a.cache;
  const int32_t* table = a.tables + a.sequences[task.row] * a.table_stride;
  const float* keys = static_cast<const float*>(c.keys);
  const float* values = static_cast<const float*>(c.values);
  for (int64_t i = 0; i < kTile; i += kTurned) {
    w.runs[i / kTurned] = nullptr;
    if (i >= count) {
      for (int64_t d = 0; d < c.key_dim; ++d) {
        __builtin_memset(w.keys + d * kTile + i, 0, kTurned * sizeof(float));
      }
      if (is_copying) {
        __builtin_memset(w.values + i * c.value_dim, 0, kTurned * c.value_dim * sizeof(float));
      }
      continue;
    }
    // The block has room for all eight; what lies beyond `count` gets a weight of zero.
    const int64_t block = table[(start + i) / c.block_size], token = (start + i) % c.block_size;
    const float* key = keys + offset_of(c.key_strides, block, token, task.kv_head);
    for (int64_t d = 0; d < c.key_dim; d += kTurned) {
      transpose_eight(key + d, c.key_strides[1], w.keys + d * kTile + i, kTile);
    }
    const float* run = values + offset_of(c.value_strides, block, token, task.kv_head);
    w.runs[i / kTurned] = run;
    for (int64_t t = 0; is_copying && t < kTurned; ++t) {
      float* to = w.values + (i + t) * c.value_dim;
      if (i + t < count) {
        __builtin_memcpy(to, run + t * c.value_strides[1], c.value_dim * sizeof(float));
      } else {
        __builtin_memset(to, 0, c.value_dim * sizeof(float));
      }
    }
  }
}

// Adds weights times values of the tile's runs; runs that follow one another are taken at once.
INLINE void add_runs(const Cache& c, int64_t count, int64_t num_queries, Workspace& w) {
  const int64_t stride = c.value_strides[1];
  for (int64_t i = 0, stop; i < count; i = stop) {
    const float* run = w.runs[i / kTurned];
    for (stop = i + kTurned; stop < count && w.runs[stop / kTurned] == run + (stop - i) * stride;) {
      stop += kTurned;
    }
    const int64_t depth = least(stop, count) - i;
    for (int64_t d = 0; d < c.value_dim; d += kLanes) {
      multiply_rows(w.scores + i, kTile, run + d, stride, depth, w.split + d, c.value_dim,
                    num_queries);
    }
  }
}

// Reads keys (transposed) and values of `count` tokens from `start`; the rest of the tile is zero.
INLINE void read_tile(const Attention& a, const AttentionTask& task, int64_t start, int64_t count,
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
      transpose_eight(w.tokens + d, key_width, w.keys + d * kTile + i + 1 - kTurned, kTile);
    }
  }
}

INLINE int64_t row_of(const Attention& a, const AttentionTask& task, int64_t q) {
  return (task.row + q / task.num_heads) * a.num_heads + task.head + q % task.num_heads;
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

// Folds a split's (maximum, sum, values) into the whole's.
INLINE void fold(float maximum_seen, float sum, const float* values, float& whole_maximum,
                 float& whole_sum, float* whole, int64_t width) {
  const float top =
      maximum_seen > whole_maximum || maximum_seen != maximum_seen ? maximum_seen : whole_maximum;
  alignas(64) float ours[kLanes], theirs[kLanes];
  store(ours, exponential(splat(whole_maximum - top)));
  store(theirs, exponential(splat(maximum_seen - top)));
  whole_sum = whole_sum * ours[0] + sum * theirs[0];
  whole_maximum = top;
  for (int64_t i = 0; i < width; i += kLanes) {
    const Floats kept = multiply(load(whole + i), splat(ours[0]));
    store(whole + i, fma(load(values + i), splat(theirs[0]), kept));
  }
}

INLINE void write_row(const float* whole, float sum, int64_t size, float* out) {
  // A row that sees nothing is zero.
  const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (int64_t i = 0; i < size; i += kLanes) {
    store_first(out + i, multiply(load(whole + i), splat(factor)), size - i);
  }
}

INLINE void attend_split(const Attention& a, const AttentionTask& task, int64_t split,
                         int64_t longest, int64_t num_queries, Workspace& w) {
  const int64_t key_dim = a.cache.key_dim, width = padded(a.cache.value_dim);
  const int64_t stop = least(longest, (split + 1) * kSplit);
  const bool is_near = is_direct(a.cache), is_copying = num_queries > kExactTile;
  for (int64_t start = split * kSplit; start < stop; start += kTile) {
    const int64_t count = least(kTile, stop - start);
    if (is_near) {
      point_at_tile(a, task, start, count, is_copying, w);
    } else {
      read_tile(a, task, start, count, w);
    }
    __builtin_memset(w.scores, 0, num_queries * kTile * sizeof(float));
    for (int64_t i = 0; i < kTile && start + i < stop; i += kLanes) {
      multiply_rows(w.queries, key_dim, w.keys + i, kTile, key_dim, w.scores + i, kTile,
                    num_queries);
    }
    for (int64_t q = 0; q < num_queries; ++q) {
      const int64_t seen = a.lengths[task.row + q / task.num_heads] - start;
      weigh_scores(w.scores + q * kTile, most(0, least(kTile, seen)), a.scale, w.maxima[0][q],
                   w.sums[0][q], w.split + q * width, width);
    }
    if (is_near && !is_copying) {
      add_runs(a.cache, count, num_queries, w);
      continue;
    }
    for (int64_t d = 0; d < width; d += kLanes) {
      multiply_rows(w.scores, kTile, w.values + d, width, kTile, w.split + d, width, num_queries);
    }
  }
}

INLINE void clear(float* values, int64_t width, int64_t num_queries, float* maxima, float* sums) {
  __builtin_memset(values, 0, num_queries * width * sizeof(float));
  for (int64_t q = 0; q < num_queries; ++q) maxima[q] = kNothingSeen, sums[q] = 0.0f;
}

void attend(const Attention& a, const AttentionTask& task) {
  const Cache& c = a.cache;
  const int64_t width = padded(c.value_dim), num_queries = task.num_rows * task.num_heads;
  Workspace w;
  float* memory = static_cast<float*>(__builtin_malloc(workspace_floats(c) * sizeof(float)));
  if (memory == nullptr) __builtin_trap();
  open_workspace(c, memory, w);
  for (int64_t q = 0; q < num_queries; ++q) {
    __builtin_memcpy(w.queries + q * c.key_dim, a.query + row_of(a, task, q) * c.key_dim,
                     c.key_dim * sizeof(float));
  }
  int64_t longest = 0;
  for (int64_t r = 0; r < task.num_rows; ++r) longest = most(longest, a.lengths[task.row + r]);
  clear(w.total, width, num_queries, w.maxima[1], w.sums[1]);
  for (int64_t s = 0; s < task.num_splits; ++s) {
    clear(w.split, width, num_queries, w.maxima[0], w.sums[0]);
    attend_split(a, task, task.first_split + s, longest, num_queries, w);
    for (int64_t q = 0; q < num_queries; ++q) {
      float* values = w.split + q * width;
      if (task.partial) {
        float* to = task.partial + q * (2 + width);
        to[0] = w.maxima[0][q], to[1] = w.sums[0][q];
        __builtin_memcpy(to + 2, values, width * sizeof(float));
      } else {
        fold(w.maxima[0][q], w.sums[0][q], values, w.maxima[1][q], w.sums[1][q],
             w.total + q * width, width);
      }
    }
  }
  for (int64_t q = 0; q < num_queries && !task.partial; ++q) {
    write_row(w.total + q * width, w.sums[1][q], c.value_dim,
              a.attended + row_of(a, task, q) * c.value_dim);
  }
  __builtin_free(memory);
}

// Folds the partials of the tasks of one run of query rows, in ascending order of splits.
void merge(const Attention& a, const AttentionTask* tasks, int64_t num_tasks) {
  const int64_t width = padded(a.cache.value_dim);
  float* whole = static_cast<float*>(__builtin_malloc(width * sizeof(float)));
  if (whole == nullptr) __builtin_trap();
  for (int64_t q = 0; q < tasks->num_rows * tasks->num_heads; ++q) {
    float maximum_seen, sum;
    clear(whole, width, 1, &maximum_seen, &sum);
    for (int64_t s = 0; s < num_tasks; ++s) {
      const float* partial = tasks[s].partial + q * (2 + width);
      fold(partial[0], partial[1], partial + 2, maximum_seen, sum, whole, width);
    }
    write_row(whole, sum, a.cache.value_dim, a.attended + row_of(a, *tasks, q) * a.cache.value_dim);
  }
  __builtin_free(whole);
}

}  // namespace
}  // namespace understudy
