// Mixtures: the SwiGLU experts chosen for each row, added up in ascending expert id.
#pragma once
#include "ops_linear.h"

namespace understudy {
namespace {

struct Stack {  // the same matrix of several experts, one after another
  const uint8_t* packed;
  int64_t format, num_out, num_in;
  Linear of(int64_t expert) const {
    return {packed + expert * packed_bytes(format, num_out, num_in), format, num_out, num_in};
  }
};

Stack checked_stack(const Tensor& packed, int64_t format, int64_t num_out, int64_t num_in,
                    int64_t num_experts) {
  TORCH_CHECK_VALUE(packed.dim() == 2 && packed.size(0) == num_experts && packed.is_contiguous(),
                    "packed experts must be (", num_experts, ", bytes) and contiguous, they are ",
                    packed.sizes(), ".");
  if (num_experts > 0) checked_linear(packed.select(0, 0), format, num_out, num_in);
  return {packed.const_data_ptr<uint8_t>(), format, num_out, num_in};
}

struct Choice {
  int64_t row;
  float weight;
};

std::vector<std::vector<Choice>> by_expert(const Tensor& ids, const Tensor& gates, int64_t first,
                                           int64_t num_experts) {
  std::vector<std::vector<Choice>> chosen(num_experts);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  const float* weight = gates.const_data_ptr<float>();
  for (int64_t i = 0; i < ids.numel(); ++i) {
    TORCH_CHECK_VALUE(id[i] >= 0, "expert ids must not be negative, one is ", id[i], ".");
    const int64_t expert = id[i] - first;
    // Other experts belong to other shards, or need no computation at all.
    if (expert >= 0 && expert < num_experts) chosen[expert].push_back({i / ids.size(1), weight[i]});
  }
  return chosen;
}

}  // namespace

Tensor swiglu_experts(const Tensor& hidden, const Tensor& ids, const Tensor& gates,
                      const Tensor& gate, const Tensor& up, const Tensor& down,
                      at::IntArrayRef formats, int64_t ffn_size, int64_t first_expert, bool exact) {
  check_floats(hidden, 2, "hidden");
  check_floats(gates, 2, "gates");
  check_formats(formats, 3);
  TORCH_CHECK_VALUE(ids.scalar_type() == at::kLong && ids.is_contiguous() && ids.dim() == 2 &&
                        ids.sizes() == gates.sizes() && ids.size(0) == hidden.size(0),
                    "ids (int64) and gates must both be (", hidden.size(0),
                    ", experts per token), they are ", ids.sizes(), " and ", gates.sizes(), ".");
  const int64_t size = hidden.size(1), num_experts = gate.size(0);
  const Stack gate_stack = checked_stack(gate, formats[0], ffn_size, size, num_experts);
  const Stack up_stack = checked_stack(up, formats[1], ffn_size, size, num_experts);
  const Stack down_stack = checked_stack(down, formats[2], size, ffn_size, num_experts);
  const Tensor out = floats(hidden.sizes());
  float* total = out.mutable_data_ptr<float>();
  std::fill_n(total, out.numel(), 0.0f);
  const auto chosen = by_expert(ids, gates, first_expert, num_experts);
  const float* source = hidden.const_data_ptr<float>();
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    const int64_t count = static_cast<int64_t>(chosen[expert].size());
    if (count == 0) continue;
    const Tensor gathered = floats({count, size}), result = floats({count, size});
    float* rows = gathered.mutable_data_ptr<float>();
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(source + chosen[expert][i].row * size, size, rows + i * size);
    }
    const Rows inputs(rows, count, size, any_quantised(formats.slice(0, 2), exact));
    run_swiglu(inputs, gate_stack.of(expert), up_stack.of(expert), down_stack.of(expert),
               plain(result), exact);
    const float* results = result.const_data_ptr<float>();
    for (int64_t i = 0; i < count; ++i) {
      const Choice& choice = chosen[expert][i];
      kernels().add_scaled(results + i * size, choice.weight, size, total + choice.row * size);
    }
  }
  return out;
}

}  // namespace understudy
