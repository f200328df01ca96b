// What the operator files share: the chosen kernels, checks, and work cut over torch's threads.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "api.h"

namespace understudy {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalTensors = std::optional<at::TensorList>;

const Kernels& kernels();  // of the best instruction set of this machine

constexpr int64_t kMacsPerTask = 65536;  // below this, handing work over costs more than it saves

inline int64_t num_groups(int64_t num_out) { return (num_out + kLanes - 1) / kLanes; }
int64_t packed_bytes(int64_t format, int64_t num_out, int64_t num_in);
inline bool is_quantised(int64_t format) { return format >= Q8_0; }

Tensor floats(at::IntArrayRef sizes);
void check_floats(const Tensor& tensor, int64_t dims, const char* name);
Linear checked_linear(const Tensor& packed, int64_t format, int64_t num_out, int64_t num_in);

// Rows as a layer reads them: quantised once where any of its matrices wants that.
class Rows {
 public:
  Rows(const float* rows, int64_t num_rows, int64_t num_in, bool is_quantised);
  const float* rows;
  int64_t num_rows, num_in;
  const QuantisedBlock* blocks;

 private:
  Tensor memory_;
};

struct Product {
  Linear linear;
  Output output;
};

// Computes all products of the same rows in one parallel region.
void run_products(const Rows& rows, const Product* products, size_t num_products, bool exact);

// hidden (T, D) -> (T, D) + residual; gate_up is scratch that the call allocates.
void run_swiglu(const Rows& rows, const Linear& gate, const Linear& up, const Linear& down,
                const Output& output, bool exact);
void run_norm(const float* rows, const float* weight, int64_t num_rows, int64_t size, float eps,
              float* out);
void run_rotation(const Rotation& rotation, int64_t num_rows);
void run_attention(const Attention& attention, int64_t num_rows);

template <class F>
void over(int64_t count, int64_t macs_each, const F& f) {
  at::parallel_for(0, count, std::max<int64_t>(1, kMacsPerTask / std::max<int64_t>(1, macs_each)),
                   f);
}

}  // namespace understudy
