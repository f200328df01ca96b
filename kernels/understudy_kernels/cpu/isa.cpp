// The kernels of one instruction set; compiled once for each.
#include "latent.h"
#include "logits.h"

namespace understudy {

const Kernels* UNDERSTUDY_TABLE() {
  static constexpr Kernels table = {
      UNDERSTUDY_ISA, quantise, linear_fast,   linear_exact,  embed,
      rms_norm,       add_rows, add_scaled,    silu_multiply, rotate,
      attend,         merge,    rotate_latent, multiply_back, attend_latent,
      largest,        sum_of_exponentials};
  return &table;
}

}  // namespace understudy
