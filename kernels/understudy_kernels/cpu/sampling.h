// One row of logits in, its token and the evidence beside it out.
#pragma once
#include <cstdint>
#include <vector>

#include "api.h"

namespace understudy {

constexpr int64_t kNothingAllowed = -1, kNotANumber = -2;  // instead of a token

struct SampleRow {
  const float* logits;
  const int32_t* mask;  // null, or `num_words` words of 32 bits
  int64_t vocab_size, num_words, top_k;
  double temperature, top_p, uniform;
  int64_t token;  // results from here on
  float logprob, margin, mask_loss;
};

void sample_row(const Kernels& kernels, SampleRow& row);

}  // namespace understudy
