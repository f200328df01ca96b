// Attention over paged keys and values, tiles of 64 tokens at a time with a running maximum.
//
// Tiles and splits start at fixed positions of the sequence, so a row's sums are the same whether
// it is decoded alone or is one of a prompt's thousand rows.
#pragma once
#include "attention_lanes.h"
#include "attention_rows.h"

namespace understudy {
namespace {

constexpr float kNothingSeen = -1e30f;  // finite, so that differences of maxima are numbers

INLINE int64_t row_of(const Attention& a, const AttentionTask& task, int64_t q) {
  return (task.row + q / task.num_heads) * a.num_heads + task.head + q % task.num_heads;
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

INLINE void clear(float* values, int64_t width, int64_t num_queries, float* maxima, float* sums) {
  __builtin_memset(values, 0, num_queries * width * sizeof(float));
  for (int64_t q = 0; q < num_queries; ++q) maxima[q] = kNothingSeen, sums[q] = 0.0f;
}

// Opens the groups of sixteen queries of a task; lanes beyond `num_queries` ask nothing.
INLINE void gather_lanes(const Attention& a, const AttentionTask& task, int64_t num_queries,
                         float* queries) {
  const int64_t key_dim = a.cache.key_dim;
  for (int64_t q = 0; q < padded(num_queries); ++q) {
    float* to = queries + q / kLanes * kLanes * key_dim + q % kLanes;
    const float* from = q < num_queries ? a.query + row_of(a, task, q) * key_dim : nullptr;
    for (int64_t d = 0; d < key_dim; ++d) to[d * kLanes] = from ? from[d] : 0.0f;
  }
}

INLINE LaneGroup lane_group(const Cache& cache, int64_t first, Workspace& w) {
  return {w.queries + first * cache.key_dim, w.split + first * padded(cache.value_dim),
          w.maxima[0] + first, w.sums[0] + first, {}, 0, 0};
}

// Notes how many tokens of the tile from `start` the group's queries see.
INLINE void look_at(const Attention& a, const AttentionTask& task, int64_t start, int64_t first,
                    int64_t num_queries, LaneGroup& group) {
  group.least_visible = kTile, group.most_visible = 0;
  for (int64_t i = 0; i < kLanes; ++i) {
    int64_t seen = 0;
    if (first + i < num_queries) {
      const int64_t length = a.lengths[task.row + (first + i) / task.num_heads];
      seen = most(0, least(kTile, length - start));
      group.least_visible = least(seen, group.least_visible);
      group.most_visible = most(seen, group.most_visible);
    }
    group.visible[i] = static_cast<float>(seen);
  }
}

INLINE void attend_split(const Attention& a, const AttentionTask& task, int64_t split,
                         int64_t longest, int64_t num_queries, bool is_few, Workspace& w) {
  const int64_t stop = least(longest, (split + 1) * kSplit);
  for (int64_t start = split * kSplit; start < stop; start += kTile) {
    const int64_t count = least(kTile, stop - start);
    if (is_few) {
      attend_rows(a, task, start, count, longest, num_queries, w);
      continue;
    }
    read_rows(a, task, start, count, longest, w.keys, w.values);
    for (int64_t first = 0; first < num_queries; first += kLanes) {
      LaneGroup group = lane_group(a.cache, first, w);
      look_at(a, task, start, first, num_queries, group);
      attend_lanes(a, group, w.keys, w.values, w.scores);
    }
  }
}

// What a query has seen of the values, gathered where its lane is one of sixteen.
INLINE const float* values_of(const float* values, int64_t q, int64_t width, bool is_few,
                              float* row) {
  if (is_few) return values + q * width;
  const float* lane = values + q / kLanes * kLanes * width + q % kLanes;
  for (int64_t d = 0; d < width; ++d) row[d] = lane[d * kLanes];
  return row;
}

INLINE void end_split(const Cache& c, const AttentionTask& task, int64_t num_queries, bool is_few,
                      Workspace& w) {
  const int64_t width = padded(c.value_dim);
  for (int64_t q = 0; task.partial && q < num_queries; ++q) {
    float* to = task.partial + q * (2 + width);
    to[0] = w.maxima[0][q], to[1] = w.sums[0][q];
    const float* from = values_of(w.split, q, width, is_few, w.tokens);
    __builtin_memcpy(to + 2, from, width * sizeof(float));
  }
  if (task.partial) return;
  for (int64_t q = 0; is_few && q < num_queries; ++q) {
    fold(w.maxima[0][q], w.sums[0][q], w.split + q * width, w.maxima[1][q], w.sums[1][q],
         w.total + q * width, width);
  }
  for (int64_t first = 0; !is_few && first < num_queries; first += kLanes) {
    fold_lanes(lane_group(c, first, w), width, w.maxima[1] + first, w.sums[1] + first,
               w.total + first * width);
  }
}

void attend(const Attention& a, const AttentionTask& task) {
  const Cache& c = a.cache;
  const int64_t width = padded(c.value_dim), num_queries = task.num_rows * task.num_heads;
  const bool is_few = num_queries <= kFewQueries;
  const int64_t num_held = is_few ? num_queries : padded(num_queries);
  Workspace w;
  float* memory = static_cast<float*>(__builtin_malloc(workspace_floats(c) * sizeof(float)));
  if (memory == nullptr) __builtin_trap();
  open_workspace(c, memory, w);
  if (!is_few) gather_lanes(a, task, num_queries, w.queries);
  for (int64_t q = 0; is_few && q < num_queries; ++q) {
    __builtin_memcpy(w.queries + q * c.key_dim, a.query + row_of(a, task, q) * c.key_dim,
                     c.key_dim * sizeof(float));
  }
  int64_t longest = 0;
  for (int64_t r = 0; r < task.num_rows; ++r) longest = most(longest, a.lengths[task.row + r]);
  clear(w.total, width, num_held, w.maxima[1], w.sums[1]);
  for (int64_t s = 0; s < task.num_splits; ++s) {
    clear(w.split, width, num_held, w.maxima[0], w.sums[0]);
    attend_split(a, task, task.first_split + s, longest, num_queries, is_few, w);
    end_split(c, task, num_queries, is_few, w);
  }
  for (int64_t q = 0; q < num_queries && !task.partial; ++q) {
    write_row(values_of(w.total, q, width, is_few, w.tokens), w.sums[1][q], c.value_dim,
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
