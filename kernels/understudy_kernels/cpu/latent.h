// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1). All heads of a row look
// at the same latents, which are keys and values at once: a tile of them is read once for the
// sixteen heads of a lane group, and for as many groups as a task has.
//
// Tiles, splits and sums are those of `attention.h` with a query in each lane, however few there
// are: a row has the same bits decoded alone and as one of a prompt's.
#pragma once
#include "attention.h"

namespace understudy {
namespace {

constexpr int64_t kTurnedInputs = 2 * kBlock;  // four columns hide what a sum waits for
constexpr int64_t kTurnedOutputs = 64;         // 64 x 64 floats are 16 KiB

INLINE void rotate_pairs(const float* x, const float* cosine, const float* sine, int64_t size,
                         bool is_interleaved, float scale, float* out) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float first = x[is_interleaved ? 2 * i : i] * scale;
    const float second = x[is_interleaved ? 2 * i + 1 : i + half] * scale;
    out[i] = first * cosine[i] - second * sine[i];
    out[i + half] = second * cosine[i] + first * sine[i];
  }
}

INLINE float* scale_place(float* scales, const int64_t* strides, int64_t block, int64_t token) {
  return scales ? scales + offset_of(strides, block, token, 0) : nullptr;
}

void rotate_latent(const LatentRotation& r, int64_t begin, int64_t end) {
  const Cache& c = r.cache;
  const int64_t rope_dim = c.key_dim, rank = c.value_dim, width = r.nope_dim + rope_dim;
  alignas(64) float latent[kMaxLatent], key[kMaxHeadDim];
  for (int64_t t = begin; t < end; ++t) {
    const float* cosine = r.cosine + t * (rope_dim / 2);
    const float* sine = r.sine + t * (rope_dim / 2);
    for (int64_t h = 0; h < r.num_heads; ++h) {
      const float* from = r.query + (t * r.num_heads + h) * width;
      float* to = r.rotated + (t * r.num_heads + h) * width;
      for (int64_t i = 0; i < r.nope_dim; ++i) to[i] = from[i] * r.query_scale;
      rotate_pairs(from + r.nope_dim, cosine, sine, rope_dim, r.is_interleaved, r.query_scale,
                   to + r.nope_dim);
    }
    const float* row = r.compressed + t * (rank + rope_dim);
    rms_norm(row, r.norm, rank, r.eps, latent);
    for (int64_t i = 0; i < rank; ++i) latent[i] *= r.latent_scale;
    rotate_pairs(row + rank, cosine, sine, rope_dim, r.is_interleaved, 1.0f, key);
    const int64_t block = r.slots[t] / c.block_size, token = r.slots[t] % c.block_size;
    store_cached(c.values, c.dtype, offset_of(c.value_strides, block, token, 0), latent, rank,
                 scale_place(c.value_scales, c.value_scale_strides, block, token));
    store_cached(c.keys, c.dtype, offset_of(c.key_strides, block, token, 0), key, rope_dim,
                 scale_place(c.key_scales, c.key_scale_strides, block, token));
  }
}

// Opens outputs [first, first + kTurnedOutputs) of inputs [k, k + kTurnedInputs) as rows of inputs.
INLINE void open_turned(const Linear& linear, int64_t first, int64_t k, float* turned) {
  const int64_t bytes = group_bytes(linear.format, linear.num_in);
  alignas(64) float panel[kPanelFloats];
  for (int64_t n = first; n < least(first + kTurnedOutputs, linear.num_out); n += kLanes) {
    for (int64_t b = 0; b * kBlock < least(kTurnedInputs, linear.num_in - k); ++b) {
      panel_of(linear.format, linear.packed + n / kLanes * bytes, k / kBlock + b, panel);
      float* to = turned + (n - first) * kTurnedInputs + b * kBlock;
      for (int64_t i = 0; i < kBlock; i += 8) {
        for (int64_t j = 0; j < kLanes; j += 8) {
          transpose_eight<0>(panel, i * kLanes + j, kLanes, to + j * kTurnedInputs + i,
                             kTurnedInputs);
        }
      }
    }
  }
}

void multiply_back(const Linear& linear, const float* x, int64_t stride, int64_t num_rows,
                   float* out, int64_t out_stride) {
  alignas(64) float turned[kTurnedOutputs * kTurnedInputs], sums[kExactRows * kTurnedInputs];
  for (int64_t start = 0; start < num_rows; start += kExactRows) {
    const int64_t count = least(kExactRows, num_rows - start);
    for (int64_t k = 0; k < linear.num_in; k += kTurnedInputs) {
      const int64_t used = least(kTurnedInputs, linear.num_in - k);
      __builtin_memset(sums, 0, count * kTurnedInputs * sizeof(float));
      for (int64_t n = 0; n < linear.num_out; n += kTurnedOutputs) {
        open_turned(linear, n, k, turned);
        multiply_columns(x + start * stride + n, stride, turned, kTurnedInputs, kLanes,
                         (used + kBlock - 1) / kBlock * (kBlock / kLanes),
                         least(kTurnedOutputs, linear.num_out - n), sums, kTurnedInputs, count);
      }
      for (int64_t t = 0; t < count; ++t) {
        __builtin_memcpy(out + (start + t) * out_stride + k, sums + t * kTurnedInputs,
                         used * sizeof(float));
      }
    }
  }
}

// What a task over latents works in. A row of the tile is a latent, then its key.
struct LatentWorkspace {
  int64_t query_dim, tile_width, width;
  float* tile;     // (kTile, tile_width)
  float* queries;  // (query_dim, kLanes) of each sixteen
  float* scores;   // (kTile, kLanes)
  float* row;      // (width,)
  float* split;    // (width, kLanes) of each sixteen
  float* total;
  float maxima[2][kQueryTile], sums[2][kQueryTile];  // of the split, of the whole
};

// Returns what is to be freed.
INLINE float* open_latent_workspace(const Cache& c, int64_t num_held, LatentWorkspace& w) {
  w.query_dim = c.value_dim + c.key_dim, w.width = padded(c.value_dim);
  w.tile_width = w.width + padded(c.key_dim);
  const int64_t size = kTile * (w.tile_width + kLanes) + w.width +
                       num_held * (w.query_dim + 2 * w.width);
  w.tile = static_cast<float*>(__builtin_malloc(size * sizeof(float)));
  if (w.tile == nullptr) __builtin_trap();
  w.scores = w.tile + kTile * w.tile_width;
  w.row = w.scores + kTile * kLanes;
  w.queries = w.row + w.width;
  w.split = w.queries + num_held * w.query_dim;
  w.total = w.split + num_held * w.width;
  return w.tile;
}

INLINE void gather_latent_lanes(const Attention& a, const AttentionTask& task, int64_t num_queries,
                                LatentWorkspace& w) {
  for (int64_t q = 0; q < padded(num_queries); ++q) {
    float* to = w.queries + q / kLanes * kLanes * w.query_dim + q % kLanes;
    const float* from = q < num_queries ? a.query + row_of(a, task, q) * w.query_dim : nullptr;
    for (int64_t d = 0; d < w.query_dim; ++d) to[d * kLanes] = from ? from[d] : 0.0f;
  }
}

template <int64_t kDtype>
INLINE void read_latents_of(const Attention& a, const AttentionTask& task, int64_t start,
                            int64_t count, int64_t limit, LatentWorkspace& w) {
  const Cache& c = a.cache;
  const int32_t* table = a.tables + a.sequences[task.row] * a.table_stride;
  for (int64_t i = 0; i < count; ++i) {
    fetch_ahead<kDtype>(a, task, start + kTile + i, least(limit, start + kTile + i + 1));
    const int64_t block = table[(start + i) / c.block_size], token = (start + i) % c.block_size;
    float* to = w.tile + i * w.tile_width;
    // In this order: what pads the latent lies where the key begins.
    read_cached(c.values, kDtype, offset_of(c.value_strides, block, token, 0), c.value_dim,
                scale_at(c.value_scales, c.value_scale_strides, block, token, 0), to);
    read_cached(c.keys, kDtype, offset_of(c.key_strides, block, token, 0), c.key_dim,
                scale_at(c.key_scales, c.key_scale_strides, block, token, 0), to + c.value_dim);
  }
}

INLINE void read_latents(const Attention& a, const AttentionTask& task, int64_t start,
                         int64_t count, int64_t limit, LatentWorkspace& w) {
  if (a.cache.dtype == 0) return read_latents_of<0>(a, task, start, count, limit, w);
  if (a.cache.dtype == 1) return read_latents_of<1>(a, task, start, count, limit, w);
  if (a.cache.dtype == 2) return read_latents_of<2>(a, task, start, count, limit, w);
  read_latents_of<3>(a, task, start, count, limit, w);
}

INLINE LaneGroup latent_group(int64_t first, LatentWorkspace& w) {
  return {w.queries + first * w.query_dim, w.split + first * w.width,
          w.maxima[0] + first, w.sums[0] + first, {}, 0, 0};
}

// Attends to the tile that is open.
void attend_latent_lanes(const Attention& a, const LaneGroup& group, LatentWorkspace& w) {
  const int64_t num_tokens = group.most_visible, rank = a.cache.value_dim;
  if (num_tokens == 0) return;
  score_lanes(group, w.tile, w.tile_width, w.query_dim, num_tokens, w.scores);
  const bool is_whole = group.least_visible >= num_tokens;
  const Floats factor = is_whole ? weigh_lanes<true>(group, a.scale, num_tokens, w.scores)
                                 : weigh_lanes<false>(group, a.scale, num_tokens, w.scores);
  for (int64_t d = 0, count; d < rank; d += count) {
    count = least(kExactTile, rank - d);
    multiply_last<kExactTile, false>(count, w.tile + d, 1, w.tile_width, w.scores, num_tokens,
                                     factor, group.split + d * kLanes);
  }
}

INLINE void attend_latent_split(const Attention& a, const AttentionTask& task, int64_t split,
                                int64_t longest, int64_t num_queries, LatentWorkspace& w) {
  const int64_t stop = least(longest, (split + 1) * kSplit);
  for (int64_t start = split * kSplit; start < stop; start += kTile) {
    read_latents(a, task, start, least(kTile, stop - start), longest, w);
    for (int64_t first = 0; first < num_queries; first += kLanes) {
      LaneGroup group = latent_group(first, w);
      look_at(a, task, start, first, num_queries, group);
      attend_latent_lanes(a, group, w);
    }
  }
}

INLINE void end_latent_split(const AttentionTask& task, int64_t num_queries, LatentWorkspace& w) {
  for (int64_t q = 0; task.partial && q < num_queries; ++q) {
    float* to = task.partial + q * (2 + w.width);
    to[0] = w.maxima[0][q], to[1] = w.sums[0][q];
    const float* from = values_of(w.split, q, w.width, false, w.row);
    __builtin_memcpy(to + 2, from, w.width * sizeof(float));
  }
  for (int64_t first = 0; !task.partial && first < num_queries; first += kLanes) {
    fold_lanes(latent_group(first, w), w.width, w.maxima[1] + first, w.sums[1] + first,
               w.total + first * w.width);
  }
}

void attend_latent(const Attention& a, const AttentionTask& task) {
  const int64_t num_queries = task.num_rows * task.num_heads, num_held = padded(num_queries);
  LatentWorkspace w;
  float* memory = open_latent_workspace(a.cache, num_held, w);
  gather_latent_lanes(a, task, num_queries, w);
  int64_t longest = 0;
  for (int64_t r = 0; r < task.num_rows; ++r) longest = most(longest, a.lengths[task.row + r]);
  clear(w.total, w.width, num_held, w.maxima[1], w.sums[1]);
  for (int64_t s = 0; s < task.num_splits; ++s) {
    clear(w.split, w.width, num_held, w.maxima[0], w.sums[0]);
    attend_latent_split(a, task, task.first_split + s, longest, num_queries, w);
    end_latent_split(task, num_queries, w);
  }
  for (int64_t q = 0; q < num_queries && !task.partial; ++q) {
    write_row(values_of(w.total, q, w.width, false, w.row), w.sums[1][q], a.cache.value_dim,
              a.attended + row_of(a, task, q) * a.cache.value_dim);
  }
  __builtin_free(memory);
}

}  // namespace
}  // namespace understudy
