// The two passes over a vocabulary that sampling needs.
#pragma once
#include "lanes.h"

namespace understudy {
namespace {

constexpr int64_t kChunk = 1024;  // logits summed as float32 before the sum becomes a double

float largest(const float* x, int64_t size) {
  float top = x[0];
  Floats tops = splat(top), broken = splat(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Floats v = load(x + i);
    // What is not a number loses every comparison, so it is caught apart; infinities only cost
    // the fallback below.
    broken = fma(v, splat(0.0f), broken);
    tops = maximum(v, tops);
  }
  alignas(64) float lanes[kLanes];
  store(lanes, tops);
  for (int lane = 0; lane < kLanes; ++lane) top = lanes[lane] > top ? lanes[lane] : top;
  const float sum = sum_of(broken);
  for (int64_t j = sum == 0.0f ? i : 0; j < size; ++j) {
    if (x[j] != x[j]) return x[j];
    top = x[j] > top ? x[j] : top;
  }
  return top;
}

double sum_of_exponentials(const float* x, int64_t size, float top) {
  double total = 0.0;
  for (int64_t start = 0; start < size; start += kChunk) {
    const int64_t stop = least(size, start + kChunk);
    Floats sums = splat(0.0f);
    for (int64_t i = start; i < stop; i += kLanes) {
      const Floats shifted = subtract(load_first(x + i, stop - i), splat(top));
      sums = add(sums, keep_first(exponential(shifted), stop - i));
    }
    total += static_cast<double>(sum_of(sums));
  }
  return total;
}

}  // namespace
}  // namespace understudy
