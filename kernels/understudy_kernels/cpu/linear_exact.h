// Linear layers with float32 activations (`exact`). The sums of one (row, output) run over the
// inputs in ascending order in every variant, so one row and a thousand give a row the same bits.
#pragma once
#include "linear.h"

namespace understudy {
namespace {

constexpr int64_t kExactRows = 96;  // whose sums (6 KiB) stay in the first cache
constexpr int64_t kFewRows = kExactTile / 2;
constexpr int64_t kSideBySide = 4;   // groups
constexpr int64_t kExactBlocks = 8;  // 256 inputs of 16 outputs are 16 KiB of floats

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

template <class F, int kByte>
INLINE void add_byte(const Ints* quads, const Scales* scales, const float* inputs, Floats* sums) {
  const Floats input = splat(inputs[kByte]);
#pragma GCC unroll 4
  for (int c = 0; c < kRowGroups; ++c) {
    sums[c] = fma(input, weight_of<F>(byte_value<F, kByte>(quads[c]), scales[c], 0), sums[c]);
  }
}

// One row: weights are opened in registers and multiplied at once, of as many groups side by side
// as the registers hold.
template <class F>
INLINE void one_row_exact(const uint8_t* group, int64_t bytes, const float* x, int64_t num_blocks,
                          Floats* sums) {
  for (int64_t block = 0; block < num_blocks; ++block, x += kBlock) {
    Scales scales[kRowGroups];
    const int sub = sub_of<F>(block);
#pragma GCC unroll 4
    for (int c = 0; c < kRowGroups; ++c) {
      const uint8_t* unit = unit_of<F>(group + c * bytes, block);
      F::scales(unit, sub, scales[c]);
      for (int i = 0; i < F::kBytes / F::kBlocks; i += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(unit) + kPrefetchBytes + i, _MM_HINT_T0);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kPairs; ++v) {
      Ints quads[2][kRowGroups];
#pragma GCC unroll 4
      for (int c = 0; c < kRowGroups; ++c) {
        const Pair pair = F::pair(unit_of<F>(group + c * bytes, block), sub, v);
        quads[0][c] = pair.first, quads[1][c] = pair.second;
      }
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const float* inputs = x + 8 * v + 4 * h;
        add_byte<F, 0>(quads[h], scales, inputs, sums);
        add_byte<F, 1>(quads[h], scales, inputs, sums);
        add_byte<F, 2>(quads[h], scales, inputs, sums);
        add_byte<F, 3>(quads[h], scales, inputs, sums);
      }
    }
  }
}

// A function of its own: where GCC 12 puts it into its caller, it keeps half of the sums in memory
// (97 us instead of 60 for 576 x 1,536).
template <class F>
__attribute__((noinline)) int64_t one_row_of(const Linear& linear, const float* x,
                                             const Output& to, int64_t begin, int64_t end) {
  const int64_t bytes = group_bytes(linear.format, linear.num_in);
  int64_t group = begin;
  for (; group + kRowGroups <= end; group += kRowGroups) {
    Floats sums[kRowGroups];
    for (int c = 0; c < kRowGroups; ++c) sums[c] = splat(0.0f);
    one_row_exact<F>(linear.packed + group * bytes, bytes, x, linear.num_in / kBlock, sums);
    for (int c = 0; c < kRowGroups; ++c) put(to, 0, group + c, linear.num_out, sums[c]);
  }
  return group;
}

// Returns the first group that is left to do.
int64_t one_row_exact(const Linear& linear, const float* x, const Output& to, int64_t begin,
                      int64_t end) {
  switch (linear.format) {
    case Q8_0:
      return one_row_of<FormatQ8_0>(linear, x, to, begin, end);
    case Q4_0:
      return one_row_of<FormatQ4_0>(linear, x, to, begin, end);
    case Q4_1:
      return one_row_of<FormatQ4_1>(linear, x, to, begin, end);
    case Q4_K:
      return one_row_of<FormatQ4_K>(linear, x, to, begin, end);
    default:
      return begin;
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
  int64_t group = num_rows == 1 ? one_row_exact(linear, x, to, begin, end) : begin;
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
