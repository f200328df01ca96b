// Attention of many queries over one tile: each lane is a query, so that maxima, sums and weights
// of sixteen queries are found without a look across lanes, and keys are read as they are stored.
//
// Every sum runs in the order in which `attention_rows.h` adds it up for a few queries: a row has
// the same bits decoded alone and as one of a prompt's.
#pragma once
#include "cached.h"

namespace understudy {
namespace {

// Sixteen queries that look at the same keys.
struct LaneGroup {
  const float* queries;    // (key_dim, kLanes)
  float* split;            // (padded value_dim, kLanes), the sums of the current split
  float* maxima;           // (kLanes,)
  float* sums;             // (kLanes,)
  float visible[kLanes];   // tokens of the tile that each query sees
  int64_t least_visible, most_visible;
};

// sums[t] = sums[t] * factor + x[t][k] * panel[k] for k ascending; fresh sums begin at zero.
template <int kRows, bool kIsFresh>
INLINE void multiply_lanes(const float* x, int64_t x_stride, int64_t x_step, const float* panel,
                           int64_t depth, Floats factor, float* sums) {
  Floats tile[kRows];
#pragma GCC unroll 16
  for (int t = 0; t < kRows; ++t) {
    tile[t] = kIsFresh ? splat(0.0f) : multiply(load(sums + t * kLanes), factor);
  }
  for (int64_t k = 0; k < depth; ++k) {
    const Floats weights = load(panel + k * kLanes);
#pragma GCC unroll 16
    for (int t = 0; t < kRows; ++t) {
      tile[t] = fma(splat(x[t * x_stride + k * x_step]), weights, tile[t]);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kRows; ++t) store(sums + t * kLanes, tile[t]);
}

template <int kRows, bool kIsFresh>
INLINE void multiply_last(int64_t num_rows, const float* x, int64_t x_stride, int64_t x_step,
                          const float* panel, int64_t depth, Floats factor, float* sums) {
  if (num_rows == kRows) {
    multiply_lanes<kRows, kIsFresh>(x, x_stride, x_step, panel, depth, factor, sums);
  } else if constexpr (kRows > 1) {
    multiply_last<kRows - 1, kIsFresh>(num_rows, x, x_stride, x_step, panel, depth, factor, sums);
  }
}

// The scores (num_tokens, kLanes) of the group's queries against keys (num_tokens, key_width).
void score_lanes(const LaneGroup& group, const float* keys, int64_t key_width, int64_t key_dim,
                 int64_t num_tokens, float* scores) {
  for (int64_t t = 0, count; t < num_tokens; t += count) {
    count = least(kExactTile, num_tokens - t);
    multiply_last<kExactTile, true>(count, keys + t * key_width, key_width, 1, group.queries,
                                    key_dim, splat(0.0f), scores + t * kLanes);
  }
}

// Adds weights times values (kTile, width) to what the split has so far, scaled by `factor`.
void add_lanes(const LaneGroup& group, const float* values, int64_t width, const float* weights,
               int64_t num_tokens, Floats factor) {
  for (int64_t d = 0, count; d < width; d += count) {
    count = least(kExactTile, width - d);
    multiply_last<kExactTile, false>(count, values + d, 1, width, weights, num_tokens, factor,
                                     group.split + d * kLanes);
  }
}

// Scales the scores and returns the greatest of each query's visible ones and of what it has seen.
// What is not a number is passed over here and reaches the weights.
template <bool kIsWhole>
INLINE Floats scale_and_find_tops(const LaneGroup& group, float scale, int64_t num_tokens,
                                  float* scores) {
  const Floats visible = load(group.visible), factor = splat(scale);
  Floats tops = load(group.maxima), other = tops;  // two chains: one would wait for itself
  for (int64_t t = 0; t < num_tokens; ++t) {
    const Floats scaled = multiply(load(scores + t * kLanes), factor);
    store(scores + t * kLanes, scaled);
    const Floats seen =
        kIsWhole ? scaled : pick_below(splat(static_cast<float>(t)), visible, scaled, tops);
    if (t % 2) {
      other = maximum(seen, other);
    } else {
      tops = maximum(seen, tops);
    }
  }
  return maximum(tops, other);
}

// Turns scores into weights and folds the running sums; returns what the split shrinks by.
template <bool kIsWhole>
INLINE Floats weigh_lanes(const LaneGroup& group, float scale, int64_t num_tokens, float* scores) {
  const Floats tops = scale_and_find_tops<kIsWhole>(group, scale, num_tokens, scores);
  const Floats visible = load(group.visible);
  Floats total = splat(0.0f);
  // Tokens sixteen apart are added first, as lanes of tokens are; see `weigh_scores`.
  for (int64_t first = 0; first < least(kLanes, num_tokens); ++first) {
    Floats sum = splat(0.0f);
    for (int64_t t = first; t < num_tokens; t += kLanes) {
      Floats weight = exponential(subtract(load(scores + t * kLanes), tops));
      if (!kIsWhole) {
        weight = pick_below(splat(static_cast<float>(t)), visible, weight, splat(0.0f));
      }
      store(scores + t * kLanes, weight);
      sum = add(sum, weight);
    }
    total = first == 0 ? sum : add(total, sum);
  }
  const Floats factor = exponential(subtract(load(group.maxima), tops));
  store(group.sums, add(multiply(load(group.sums), factor), total));
  store(group.maxima, tops);
  return factor;
}

// Folds a group's split into the whole of its queries.
INLINE void fold_lanes(const LaneGroup& group, int64_t width, float* maxima, float* sums,
                       float* whole) {
  const Floats seen = load(group.maxima), before = load(maxima), tops = maximum(seen, before);
  const Floats ours = exponential(subtract(before, tops)), theirs = exponential(subtract(seen, tops));
  store(sums, add(multiply(load(sums), ours), multiply(load(group.sums), theirs)));
  store(maxima, tops);
  for (int64_t i = 0; i < width * kLanes; i += kLanes) {
    store(whole + i, fma(load(group.split + i), theirs, multiply(load(whole + i), ours)));
  }
}

// Attends to one tile whose keys and values (kTile, padded dim) are open.
void attend_lanes(const Attention& a, const LaneGroup& group, const float* keys,
                  const float* values, float* scores) {
  const int64_t num_tokens = group.most_visible, width = padded(a.cache.value_dim);
  if (num_tokens == 0) return;
  score_lanes(group, keys, padded(a.cache.key_dim), a.cache.key_dim, num_tokens, scores);
  const bool is_whole = group.least_visible >= num_tokens;
  const Floats factor = is_whole ? weigh_lanes<true>(group, a.scale, num_tokens, scores)
                                 : weigh_lanes<false>(group, a.scale, num_tokens, scores);
  add_lanes(group, values, width, scores, num_tokens, factor);
}

}  // namespace
}  // namespace understudy
