// Operators around matrices: linear, embedding, norms, SwiGLU.
#pragma once
#include <numeric>

#include "ops.h"

namespace understudy {

int64_t packed_bytes(int64_t format, int64_t num_out, int64_t num_in) {
  constexpr int64_t unit_bytes[] = {2048, 1024, 1024, 544, 288, 320, 2368, 3360};
  constexpr int64_t unit_inputs[] = {32, 32, 32, 32, 32, 32, 256, 256};
  const int64_t units = (num_in + unit_inputs[format] - 1) / unit_inputs[format];
  return num_groups(num_out) * units * unit_bytes[format];
}

Tensor floats(at::IntArrayRef sizes) { return at::empty(sizes, at::TensorOptions(at::kFloat)); }

void check_floats(const Tensor& tensor, int64_t dims, const char* name) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == at::kFloat, name, " must be float32, it is ",
                    tensor.scalar_type(), ".");
  TORCH_CHECK_VALUE(tensor.dim() == dims, name, " must have ", dims, " dimensions, it has ",
                    tensor.dim(), ".");
  TORCH_CHECK_VALUE(tensor.is_contiguous(), name, " must be contiguous.");
}

Linear checked_linear(const Tensor& packed, int64_t format, int64_t num_out, int64_t num_in) {
  TORCH_CHECK_VALUE(format >= 0 && format < kNumFormats, "format ", format, " does not exist.");
  const int64_t unit = format >= Q4_K ? 256 : is_quantised(format) ? 32 : 1;
  TORCH_CHECK_VALUE(num_out > 0 && num_in > 0 && num_in % unit == 0, "a weight of ", num_out, " x ",
                    num_in, " cannot have format ", format, ": inputs come in units of ", unit,
                    ".");
  TORCH_CHECK_VALUE(packed.scalar_type() == at::kByte && packed.is_contiguous() &&
                        packed.numel() == packed_bytes(format, num_out, num_in),
                    "packed must be ", packed_bytes(format, num_out, num_in),
                    " contiguous bytes for ", num_out, " x ", num_in, " in format ", format,
                    ", it has ", packed.numel(), ".");
  return {packed.const_data_ptr<uint8_t>(), format, num_out, num_in};
}

Rows::Rows(const float* rows, int64_t num_rows, int64_t num_in, bool is_quantised)
    : rows(rows), num_rows(num_rows), num_in(num_in), blocks(nullptr) {
  if (!is_quantised || num_rows == 0) return;
  const int64_t count = num_rows * (num_in / kBlock);
  memory_ = at::empty({count * static_cast<int64_t>(sizeof(QuantisedBlock))},
                      at::TensorOptions(at::kByte));
  auto* out = reinterpret_cast<QuantisedBlock*>(memory_.mutable_data_ptr<uint8_t>());
  blocks = out;
  over(num_rows, 8 * num_in, [&](int64_t begin, int64_t end) {
    kernels().quantise(rows, num_in, begin, end, num_in, num_rows, out);
  });
}

void run_products(const Rows& rows, const Product* products, size_t num_products, bool exact) {
  if (rows.num_rows == 0) return;
  int64_t total = 0;
  for (size_t i = 0; i < num_products; ++i) total += num_groups(products[i].linear.num_out);
  over(total, kLanes * rows.num_in * rows.num_rows, [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (size_t i = 0; i < num_products; ++i) {
      const Linear& linear = products[i].linear;
      const int64_t count = num_groups(linear.num_out);
      const int64_t from = std::max<int64_t>(begin - first, 0), to = std::min(end - first, count);
      first += count;
      if (from >= to) continue;
      if (exact || !is_quantised(linear.format)) {
        kernels().linear_exact(linear, rows.rows, rows.num_in, rows.num_rows, products[i].output,
                               from, to);
      } else {
        kernels().linear_fast(linear, rows.blocks, rows.num_rows, products[i].output, from, to);
      }
    }
  });
}

void run_norm(const float* rows, const float* weight, int64_t num_rows, int64_t size, float eps,
              float* out) {
  over(num_rows, 4 * size, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernels().rms_norm(rows + t * size, weight, size, eps, out + t * size);
    }
  });
}

void run_swiglu(const Rows& rows, const Linear& gate, const Linear& up, const Linear& down,
                const Output& output, bool exact) {
  const int64_t num_rows = rows.num_rows, size = gate.num_out;
  if (num_rows == 0) return;
  const Tensor inner = floats({2, num_rows, size});
  float* gates = inner.mutable_data_ptr<float>();
  float* ups = gates + num_rows * size;
  const Product products[] = {{gate, {gates, size, nullptr, nullptr, 0}},
                              {up, {ups, size, nullptr, nullptr, 0}}};
  run_products(rows, products, 2, exact);
  over(num_rows, 16 * size, [&](int64_t begin, int64_t end) {
    kernels().silu_multiply(gates + begin * size, ups + begin * size, (end - begin) * size,
                            gates + begin * size);
  });
  const Rows inners(gates, num_rows, size, !exact && is_quantised(down.format));
  const Product last = {down, output};
  run_products(inners, &last, 1, exact);
}

namespace {

Output plain(const Tensor& rows) {
  return {rows.mutable_data_ptr<float>(), rows.size(1), nullptr, nullptr, 0};
}

bool any_quantised(at::IntArrayRef formats, bool exact) {
  return !exact && std::any_of(formats.begin(), formats.end(), is_quantised);
}

void check_formats(at::IntArrayRef formats, size_t count) {
  TORCH_CHECK_VALUE(formats.size() == count, "formats must name ", count, ", it names ",
                    formats.size(), ".");
}

const float* checked_vector(const Tensor& tensor, int64_t size, const char* name) {
  check_floats(tensor, 1, name);
  TORCH_CHECK_VALUE(tensor.numel() == size, name, " must have ", size, " values, it has ",
                    tensor.numel(), ".");
  return tensor.const_data_ptr<float>();
}

}  // namespace

Tensor quantised_linear(const Tensor& hidden, const Tensor& packed, int64_t format, int64_t num_out,
                        const OptionalTensor& bias, const OptionalTensor& residual, bool exact) {
  check_floats(hidden, 2, "hidden");
  const int64_t num_rows = hidden.size(0);
  const Linear linear = checked_linear(packed, format, num_out, hidden.size(1));
  const Tensor out = floats({num_rows, num_out});
  Product product = {linear, plain(out)};
  if (bias) product.output.bias = checked_vector(*bias, num_out, "bias");
  if (residual) {
    check_floats(*residual, 2, "residual");
    TORCH_CHECK_VALUE(residual->sizes() == out.sizes(), "residual must have the result's shape ",
                      out.sizes(), ", it has ", residual->sizes(), ".");
    product.output.residual = residual->const_data_ptr<float>();
    product.output.residual_stride = num_out;
  }
  const Rows rows(hidden.const_data_ptr<float>(), num_rows, linear.num_in,
                  !exact && is_quantised(format));
  run_products(rows, &product, 1, exact);
  return out;
}

Tensor quantised_embedding(const Tensor& ids, const Tensor& packed, int64_t format, int64_t num_out,
                           int64_t num_in) {
  TORCH_CHECK_VALUE(ids.scalar_type() == at::kLong && ids.dim() == 1 && ids.is_contiguous(),
                    "ids must be a contiguous vector of int64.");
  const Linear linear = checked_linear(packed, format, num_out, num_in);
  const Tensor out = floats({ids.size(0), num_in});
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < ids.size(0); ++t) {
    TORCH_CHECK_VALUE(id[t] >= 0 && id[t] < num_out, "id ", id[t], " is outside a table of ",
                      num_out, " rows.");
  }
  float* rows = out.mutable_data_ptr<float>();
  over(ids.size(0), kLanes * num_in, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) kernels().embed(linear, id[t], rows + t * num_in);
  });
  return out;
}

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& hidden, const Tensor& residual,
                                        const Tensor& weight, double eps) {
  check_floats(hidden, 2, "hidden");
  check_floats(residual, 2, "residual");
  TORCH_CHECK_VALUE(hidden.sizes() == residual.sizes(), "hidden ", hidden.sizes(), " and residual ",
                    residual.sizes(), " must have one shape.");
  const int64_t num_rows = hidden.size(0), size = hidden.size(1);
  const float* scale = checked_vector(weight, size, "weight");
  const Tensor sum = floats(hidden.sizes()), normed = floats(hidden.sizes());
  const float* a = hidden.const_data_ptr<float>();
  const float* b = residual.const_data_ptr<float>();
  float* total = sum.mutable_data_ptr<float>();
  float* out = normed.mutable_data_ptr<float>();
  over(num_rows, 4 * size, [&](int64_t begin, int64_t end) {
    kernels().add(a + begin * size, b + begin * size, (end - begin) * size, total + begin * size);
    for (int64_t t = begin; t < end; ++t) {
      kernels().rms_norm(total + t * size, scale, size, static_cast<float>(eps), out + t * size);
    }
  });
  return {normed, sum};
}

Tensor normed_linears(const Tensor& hidden, const Tensor& weight, double eps, at::TensorList packed,
                      at::IntArrayRef formats, at::IntArrayRef num_outs, const OptionalTensor& bias,
                      bool exact) {
  check_floats(hidden, 2, "hidden");
  check_formats(formats, packed.size());
  TORCH_CHECK_VALUE(num_outs.size() == packed.size(), "num_outs must name ", packed.size(),
                    ", it names ", num_outs.size(), ".");
  const int64_t num_rows = hidden.size(0), size = hidden.size(1);
  const int64_t width = std::accumulate(num_outs.begin(), num_outs.end(), int64_t{0});
  const Tensor out = floats({num_rows, width}), normed = floats(hidden.sizes());
  const float* biases = bias ? checked_vector(*bias, width, "bias") : nullptr;
  std::vector<Product> products(packed.size());
  int64_t column = 0;
  for (size_t i = 0; i < packed.size(); ++i) {
    Output to = plain(out);
    to.rows += column;
    to.bias = biases ? biases + column : nullptr;
    products[i] = {checked_linear(packed[i], formats[i], num_outs[i], size), to};
    column += num_outs[i];
  }
  run_norm(hidden.const_data_ptr<float>(), checked_vector(weight, size, "weight"), num_rows, size,
           static_cast<float>(eps), normed.mutable_data_ptr<float>());
  const Rows rows(normed.const_data_ptr<float>(), num_rows, size, any_quantised(formats, exact));
  run_products(rows, products.data(), products.size(), exact);
  return out;
}

Tensor swiglu(const Tensor& hidden, const Tensor& gate, const Tensor& up, const Tensor& down,
              at::IntArrayRef formats, int64_t ffn_size, bool exact) {
  check_floats(hidden, 2, "hidden");
  check_formats(formats, 3);
  const int64_t size = hidden.size(1);
  const Tensor out = floats(hidden.sizes());
  const Rows rows(hidden.const_data_ptr<float>(), hidden.size(0), size,
                  any_quantised(formats.slice(0, 2), exact));
  run_swiglu(rows, checked_linear(gate, formats[0], ffn_size, size),
             checked_linear(up, formats[1], ffn_size, size),
             checked_linear(down, formats[2], size, ffn_size), plain(out), exact);
  return out;
}

Tensor normed_swiglu(const Tensor& hidden, const Tensor& weight, double eps, const Tensor& gate,
                     const Tensor& up, const Tensor& down, at::IntArrayRef formats,
                     int64_t ffn_size, bool exact) {
  check_floats(hidden, 2, "hidden");
  check_formats(formats, 3);
  const int64_t size = hidden.size(1);
  const Tensor out = floats(hidden.sizes()), normed = floats(hidden.sizes());
  run_norm(hidden.const_data_ptr<float>(), checked_vector(weight, size, "weight"), hidden.size(0),
           size, static_cast<float>(eps), normed.mutable_data_ptr<float>());
  Output to = plain(out);
  to.residual = hidden.const_data_ptr<float>();
  to.residual_stride = size;
  const Rows rows(normed.const_data_ptr<float>(), hidden.size(0), size,
                  any_quantised(formats.slice(0, 2), exact));
  run_swiglu(rows, checked_linear(gate, formats[0], ffn_size, size),
             checked_linear(up, formats[1], ffn_size, size),
             checked_linear(down, formats[2], size, ffn_size), to, exact);
  return out;
}

}  // namespace understudy
