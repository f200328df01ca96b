// Quantised linear layers with int8 activations (`fast`), and where the results of both kinds go.
// The sums of one (row, output) run over the blocks in ascending order in every variant, so one row
// and a thousand rows give a row the same bits.
#pragma once
#include "formats.h"

namespace understudy {
namespace {

constexpr int64_t kFastRows = 96;  // whose sums (6 KiB) stay in the first cache
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

}  // namespace
}  // namespace understudy
