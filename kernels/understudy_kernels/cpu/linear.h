// Quantised linear layers: int8 activations (fast) and float32 activations (exact).
// The sums of one (row, output) run over the blocks in ascending order in every variant, so one row
// and a thousand rows give a row the same bits.
#pragma once
#include "formats.h"

namespace understudy {
namespace {

constexpr int64_t kFastRows = 96, kExactRows = 96;  // whose sums (6 KiB) stay in the first cache
constexpr int64_t kFewRows = kExactTile / 2;
constexpr int64_t kSideBySide = 4;  // groups
constexpr int64_t kExactBlocks = 8;  // 256 inputs of 16 outputs are 16 KiB of floats
constexpr int64_t kPrefetchBytes = 2048;

INLINE void put(const Output& to, int64_t row, int64_t group, int64_t num_out, Floats sum) {
  const int64_t start = group * kLanes;
  const int64_t count = least(kLanes, num_out - start);
  alignas(64) float lanes[kLanes];
  if (count == kLanes) {
    if (to.bias) sum = add(sum, load(to.bias + start));
    if (to.residual) sum = add(sum, load(to.residual + row * to.residual_stride + start));
    store(to.rows + row * to.stride + start, sum);
    return;
  }
  store(lanes, sum);
  for (int64_t i = 0; i < count; ++i) {
    if (to.bias) lanes[i] += to.bias[start + i];
    if (to.residual) lanes[i] += to.residual[row * to.residual_stride + start + i];
    to.rows[row * to.stride + start + i] = lanes[i];
  }
}

template <class F>
INLINE Floats finish(Floats sum, Floats dots, const Scales& s, int half, const QuantisedBlock& x) {
  sum = fma(multiply(dots, s.scale[half]), splat(x.scale), sum);
  if constexpr (F::kHasOffset) {
    sum = fma(s.offset[half], splat(F::kHalves == 1 ? x.sum : x.half_sums[half]), sum);
  }
  return sum;
}

template <class F, int kPair, int kQuad>
INLINE void add_pair(Dot<F::kKind>& dot, const uint8_t* unit, int sub, const QuantisedBlock& x) {
  const Pair pair = F::pair(unit, sub, kPair);
  dot.template add<kQuad>(pair.first, splat_quad(x.values + 8 * kPair));
  dot.template add<kQuad + 1>(pair.second, splat_quad(x.values + 8 * kPair + 4));
}

// One row: weights go from memory through registers, once.
template <class F>
INLINE Floats one_row(const uint8_t* group, const QuantisedBlock* x, int64_t num_blocks) {
  Floats sum = splat(0.0f);
  for (int64_t block = 0; block < num_blocks; ++block, ++x) {
    const uint8_t* unit = unit_of<F>(group, block);
    const int sub = sub_of<F>(block);
    const char* ahead =
        reinterpret_cast<const char*>(group) + kPrefetchBytes + block * F::kBytes / F::kBlocks;
    for (int i = 0; i < F::kBytes / F::kBlocks; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
    Scales s;
    F::scales(unit, sub, s);
    Dot<F::kKind> dot;
    constexpr int rest = F::kHalves == 1 ? 4 : 0;
    add_pair<F, 0, 0>(dot, unit, sub, *x);
    add_pair<F, 1, 2>(dot, unit, sub, *x);
    if constexpr (F::kHalves == 2) sum = finish<F>(sum, dot.total(), s, 0, *x);
    add_pair<F, 2, rest>(dot, unit, sub, *x);
    add_pair<F, 3, rest + 2>(dot, unit, sub, *x);
    sum = finish<F>(sum, dot.total(), s, F::kHalves - 1, *x);
  }
  return sum;
}

// One block, opened up in the first cache for many rows.
template <class F>
struct Opened {
  alignas(64) uint8_t quads[8][64];
  Scales scales;
  __attribute__((always_inline)) void read(const uint8_t* group, int64_t block) {
    const uint8_t* unit = unit_of<F>(group, block);
    F::scales(unit, sub_of<F>(block), scales);
#pragma GCC unroll 4
    for (int v = 0; v < kPairs; ++v) {
      const Pair pair = F::pair(unit, sub_of<F>(block), v);
      store_bytes(quads[2 * v], pair.first);
      store_bytes(quads[2 * v + 1], pair.second);
    }
  }
};

template <class F, int kRows, int kFirst, int kQuad>
INLINE void add_quads(const Opened<F>& opened, const QuantisedBlock* x, Dot<F::kKind>* dots) {
  constexpr int count = 8 / F::kHalves;
  if constexpr (kQuad < count) {
    const Ints weights = load_bytes(opened.quads[kFirst + kQuad]);
#pragma GCC unroll 8
    for (int t = 0; t < kRows; ++t) {
      dots[t].template add<kQuad>(weights, splat_quad(x[t].values + 4 * (kFirst + kQuad)));
    }
    add_quads<F, kRows, kFirst, kQuad + 1>(opened, x, dots);
  }
}

template <class F, int kRows>
INLINE void some_rows(const Opened<F>& opened, const QuantisedBlock* x, float* sums) {
  Dot<F::kKind> dots[kRows];
  add_quads<F, kRows, 0, 0>(opened, x, dots);
#pragma GCC unroll 8
  for (int t = 0; t < kRows; ++t) {
    float* at = sums + t * kLanes;
    store(at, finish<F>(load(at), dots[t].total(), opened.scales, 0, x[t]));
  }
  if constexpr (F::kHalves == 2) {
    add_quads<F, kRows, 4, 0>(opened, x, dots);
#pragma GCC unroll 8
    for (int t = 0; t < kRows; ++t) {
      float* at = sums + t * kLanes;
      store(at, finish<F>(load(at), dots[t].total(), opened.scales, 1, x[t]));
    }
  }
}

template <class F>
void fast_groups(const Linear& linear, const QuantisedBlock* x, int64_t num_rows, const Output& to,
                 int64_t begin, int64_t end) {
  const int64_t num_blocks = linear.num_in / kBlock;
  const int64_t bytes = num_blocks / F::kBlocks * F::kBytes;
  if (num_rows == 1) {
    for (int64_t group = begin; group < end; ++group) {
      put(to, 0, group, linear.num_out, one_row<F>(linear.packed + group * bytes, x, num_blocks));
    }
    return;
  }
  alignas(64) float sums[kFastRows * kLanes];
  Opened<F> opened;
  for (int64_t start = 0; start < num_rows; start += kFastRows) {
    const int64_t count = least(kFastRows, num_rows - start);
    for (int64_t group = begin; group < end; ++group) {
      __builtin_memset(sums, 0, count * kLanes * sizeof(float));
      for (int64_t block = 0; block < num_blocks; ++block) {
        opened.read(linear.packed + group * bytes, block);
        const QuantisedBlock* rows = x + block * num_rows + start;
        int64_t t = 0;
        for (; t + kFastTile <= count; t += kFastTile) {
          some_rows<F, kFastTile>(opened, rows + t, sums + t * kLanes);
        }
        for (; t + 2 <= count; t += 2) some_rows<F, 2>(opened, rows + t, sums + t * kLanes);
        if (t < count) some_rows<F, 1>(opened, rows + t, sums + t * kLanes);
      }
      for (int64_t t = 0; t < count; ++t) {
        put(to, start + t, group, linear.num_out, load(sums + t * kLanes));
      }
    }
  }
}

void linear_fast(const Linear& linear, const QuantisedBlock* x, int64_t num_rows, const Output& to,
                 int64_t begin, int64_t end) {
  switch (linear.format) {
    case Q8_0:
      return fast_groups<FormatQ8_0>(linear, x, num_rows, to, begin, end);
    case Q4_0:
      return fast_groups<FormatQ4_0>(linear, x, num_rows, to, begin, end);
    case Q4_1:
      return fast_groups<FormatQ4_1>(linear, x, num_rows, to, begin, end);
    case Q4_K:
      return fast_groups<FormatQ4_K>(linear, x, num_rows, to, begin, end);
    case Q6_K:
      return fast_groups<FormatQ6_K>(linear, x, num_rows, to, begin, end);
  }
}

// sums[t][c] += x[t][k] * panel[k][c] for k ascending: the one float32 product of this library.
template <int kRows, int kColumns, class T>
INLINE void multiply_tile(const float* x, int64_t x_stride, const T* panel, int64_t panel_stride,
                          int64_t column_stride, int64_t depth, float* sums, int64_t sums_stride) {
  Floats tile[kRows][kColumns];
#pragma GCC unroll 16
  for (int t = 0; t < kRows; ++t) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) tile[t][c] = load(sums + t * sums_stride + c * kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      const Floats weights = load(panel + k * panel_stride + c * column_stride);
#pragma GCC unroll 16
      for (int t = 0; t < kRows; ++t)
        tile[t][c] = fma(splat(x[t * x_stride + k]), weights, tile[t][c]);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kRows; ++t) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) store(sums + t * sums_stride + c * kLanes, tile[t][c]);
  }
}

// As many columns side by side as give every sum time to be ready for its next product.
template <int kRows, class T>
INLINE void multiply_some(int64_t num_rows, const float* x, int64_t x_stride, const T* panel,
                          int64_t panel_stride, int64_t column_stride, int64_t num_columns,
                          int64_t depth, float* sums, int64_t sums_stride) {
  if (num_rows == kRows) {
    constexpr int wide = kRows * 4 <= kExactTile ? 4 : kRows * 2 <= kExactTile ? 2 : 1;
    int64_t c = 0;
    for (; c + wide <= num_columns; c += wide) {
      multiply_tile<kRows, wide>(x, x_stride, panel + c * column_stride, panel_stride,
                                 column_stride, depth, sums + c * kLanes, sums_stride);
    }
    for (; wide > 1 && c < num_columns; ++c) {
      multiply_tile<kRows, 1>(x, x_stride, panel + c * column_stride, panel_stride, 0, depth,
                              sums + c * kLanes, sums_stride);
    }
  } else if constexpr (kRows > 1) {
    multiply_some<kRows - 1>(num_rows, x, x_stride, panel, panel_stride, column_stride, num_columns,
                             depth, sums, sums_stride);
  }
}

// Panels of 16 outputs lie `column_stride` apart, their sums side by side.
template <class T>
void multiply_columns(const float* x, int64_t x_stride, const T* panel, int64_t panel_stride,
                      int64_t column_stride, int64_t num_columns, int64_t depth, float* sums,
                      int64_t sums_stride, int64_t num_rows) {
  for (int64_t t = 0, count; t < num_rows; t += count) {
    const int64_t left = num_rows - t;
    // Too few rows wait for their sums: eight are four and four, not six and two.
    const bool is_last = left <= kExactTile, is_even = left >= 2 * kExactTile;
    count = is_last ? left : is_even ? kExactTile : (left + 1) / 2;
    multiply_some<kExactTile>(count, x + t * x_stride, x_stride, panel, panel_stride, column_stride,
                              num_columns, depth, sums + t * sums_stride, sums_stride);
  }
}

// A few rows would wait for each sum; four groups side by side hide that.
void few_rows_exact(const Linear& linear, const float* x, int64_t stride, int64_t num_rows,
                    int64_t bytes, const Output& to, int64_t group) {
  alignas(64) float panels[kSideBySide][kPanelFloats], sums[kFewRows * kSideBySide * kLanes] = {};
  for (int64_t k = 0; k < linear.num_in; k += kBlock) {
    const int64_t used = least(kBlock, linear.num_in - k);
    for (int c = 0; c < kSideBySide; ++c) {
      panel_of(linear.format, linear.packed + (group + c) * bytes, k / kBlock, panels[c]);
    }
    if (num_rows == 1) {
      multiply_tile<1, kSideBySide>(x + k, 0, panels[0], kLanes, kPanelFloats, used, sums, 0);
    } else {
      multiply_columns(x + k, stride, panels[0], kLanes, kPanelFloats, kSideBySide, used, sums,
                       kSideBySide * kLanes, num_rows);
    }
  }
  for (int64_t t = 0; t < num_rows; ++t) {
    for (int64_t c = 0; c < kSideBySide; ++c) {
      put(to, t, group + c, linear.num_out, load(sums + (t * kSideBySide + c) * kLanes));
    }
  }
}

void linear_exact(const Linear& linear, const float* x, int64_t stride, int64_t num_rows,
                  const Output& to, int64_t begin, int64_t end) {
  const int64_t bytes = group_bytes(linear.format, linear.num_in);
  int64_t group = begin;
  for (; num_rows <= kFewRows && group + kSideBySide <= end; group += kSideBySide) {
    few_rows_exact(linear, x, stride, num_rows, bytes, to, group);
  }
  alignas(64) float panel[kExactBlocks * kPanelFloats];
  alignas(64) float sums[kExactRows * kLanes];
  const int64_t depth = kExactBlocks * kBlock;
  for (int64_t start = 0; start < num_rows; start += kExactRows) {
    const int64_t count = least(kExactRows, num_rows - start);
    for (int64_t at = group; at < end; ++at) {
      __builtin_memset(sums, 0, count * kLanes * sizeof(float));
      for (int64_t k = 0; k < linear.num_in; k += depth) {
        const int64_t used = least(depth, linear.num_in - k);
        for (int64_t b = 0; b * kBlock < used; ++b) {
          panel_of(linear.format, linear.packed + at * bytes, k / kBlock + b,
                   panel + b * kPanelFloats);
        }
        multiply_columns(x + start * stride + k, stride, panel, kLanes, 0, 1, used, sums, kLanes,
                         count);
      }
      for (int64_t t = 0; t < count; ++t) {
        put(to, start + t, at, linear.num_out, load(sums + t * kLanes));
      }
    }
  }
}

void embed(const Linear& linear, int64_t id, float* row) {
  const uint8_t* group = linear.packed + id / kLanes * group_bytes(linear.format, linear.num_in);
  alignas(64) float panel[kPanelFloats];
  for (int64_t k = 0; k < linear.num_in; k += kBlock) {
    panel_of(linear.format, group, k / kBlock, panel);
    const int64_t count = least(kBlock, linear.num_in - k);
    for (int64_t i = 0; i < count; ++i) row[k + i] = panel[i * kLanes + id % kLanes];
  }
}

}  // namespace
}  // namespace understudy
