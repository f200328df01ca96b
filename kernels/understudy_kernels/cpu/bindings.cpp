// Operators as torch sees them. Schemas come from schemas.py, through schemas.inc of the build.
#include <ATen/ops/clone.h>
#include <torch/library.h>

#include "ops_experts.h"
#include "ops_latent.h"
#include "ops_layers.h"
#include "sampling.h"

namespace understudy {

const Kernels& kernels() {
  static const Kernels* const best = [] {
    __builtin_cpu_init();
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
    return wide ? avx512_kernels() : avx2_kernels();
  }();
  return *best;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_tokens(const Tensor& logits,
                                                         const OptionalTensor& mask,
                                                         const Tensor& temperatures,
                                                         const Tensor& top_ks, const Tensor& top_ps,
                                                         const Tensor& uniforms) {
  check_floats(logits, 2, "logits");
  const int64_t num_rows = logits.size(0), size = logits.size(1);
  TORCH_CHECK_VALUE(size > 0, "logits must have a vocabulary.");
  for (const Tensor* each : {&temperatures, &top_ps, &uniforms}) {
    TORCH_CHECK_VALUE(each->scalar_type() == at::kDouble && each->dim() == 1 &&
                          each->numel() == num_rows && each->is_contiguous(),
                      "temperatures, top_ps and uniforms must be ", num_rows,
                      " contiguous float64.");
  }
  TORCH_CHECK_VALUE(top_ks.scalar_type() == at::kLong && top_ks.dim() == 1 &&
                        top_ks.numel() == num_rows && top_ks.is_contiguous(),
                    "top_ks must be ", num_rows, " contiguous int64.");
  TORCH_CHECK_VALUE(!mask || (mask->scalar_type() == at::kInt && mask->dim() == 2 &&
                              mask->size(0) == num_rows && mask->is_contiguous()),
                    "mask must be contiguous int32 of ", num_rows, " rows.");
  const Tensor tokens = at::empty({num_rows}, at::TensorOptions(at::kLong));
  const Tensor logprobs = floats({num_rows}), margins = floats({num_rows}),
               losses = floats({num_rows});
  std::vector<SampleRow> rows(num_rows);
  for (int64_t t = 0; t < num_rows; ++t) {
    SampleRow& row = rows[t];
    row.logits = logits.const_data_ptr<float>() + t * size, row.vocab_size = size;
    row.num_words = mask ? mask->size(1) : 0;
    row.mask = mask ? mask->const_data_ptr<int32_t>() + t * row.num_words : nullptr;
    row.temperature = temperatures.const_data_ptr<double>()[t],
    row.top_p = top_ps.const_data_ptr<double>()[t];
    row.uniform = uniforms.const_data_ptr<double>()[t],
    row.top_k = top_ks.const_data_ptr<int64_t>()[t];
    TORCH_CHECK_VALUE(row.temperature >= 0 && row.top_k >= 0 && row.top_p > 0 && row.top_p <= 1 &&
                          row.uniform >= 0 && row.uniform < 1,
                      "row ", t, " has parameters out of range.");
  }
  over(num_rows, 8 * size, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) sample_row(kernels(), rows[t]);
  });
  for (int64_t t = 0; t < num_rows; ++t) {
    TORCH_CHECK_VALUE(rows[t].token != kNotANumber, "logits of row ", t, " are not numbers.");
    TORCH_CHECK_VALUE(rows[t].token != kNothingAllowed, "the mask of row ", t,
                      " allows no token at all.");
    tokens.mutable_data_ptr<int64_t>()[t] = rows[t].token,
    logprobs.mutable_data_ptr<float>()[t] = rows[t].logprob;
    margins.mutable_data_ptr<float>()[t] = rows[t].margin,
    losses.mutable_data_ptr<float>()[t] = rows[t].mask_loss;
  }
  return {tokens, logprobs, margins, losses};
}

}  // namespace understudy

TORCH_LIBRARY(understudy, m) {
#include "schemas.inc"
}

TORCH_LIBRARY_IMPL(understudy, CPU, m) {
  m.impl("quantised_linear", understudy::quantised_linear);
  m.impl("quantised_embedding", understudy::quantised_embedding);
  m.impl("add_rms_norm", understudy::add_rms_norm);
  m.impl("normed_linears", understudy::normed_linears);
  m.impl("swiglu", understudy::swiglu);
  m.impl("normed_swiglu", understudy::normed_swiglu);
  m.impl("swiglu_experts", understudy::swiglu_experts);
  m.impl("rotate_and_cache", understudy::rotate_and_cache);
  m.impl("paged_attention", understudy::paged_attention);
  m.impl("rotate_and_cache_latent", understudy::rotate_and_cache_latent);
  m.impl("latent_attention", understudy::latent_attention);
  m.impl("sample_tokens", understudy::sample_tokens);
  m.impl("decoder_layers", understudy::decoder_layers);
}

extern "C" __attribute__((visibility("default"))) const char* understudy_kernels_isa() {
  return understudy::kernels().isa;
}
