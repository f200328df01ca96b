"""RMSNorm, with or without a residual, one program per row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from understudy_kernels.reference.checks import check_floats, require


@triton.jit
def _norm_kernel(
    hidden_ptr, residual_ptr, weight_ptr, sum_ptr, out_ptr, size, eps,
    HAS_RESIDUAL: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    mask = columns < size
    values = tl.load(hidden_ptr + row * size + columns, mask=mask, other=0.0)
    if HAS_RESIDUAL:
        values += tl.load(residual_ptr + row * size + columns, mask=mask, other=0.0)
        tl.store(sum_ptr + row * size + columns, values, mask=mask)
    factor = tl.rsqrt(tl.sum(values * values, axis=0) / size + eps)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0)
    tl.store(out_ptr + row * size + columns, values * factor * weight, mask=mask)


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return `hidden` (T, D) over its root mean square, times `weight` (D,)."""
    check_floats(hidden, 2, "hidden")
    check_floats(weight, 1, "weight")
    num_rows, size = hidden.shape
    require(weight.numel() == size, f"weight must have {size} values, it has {weight.numel()}.")
    out = torch.empty_like(hidden)
    if num_rows:
        _norm_kernel[(num_rows,)](
            hidden, hidden, weight, out, out, size, eps,
            HAS_RESIDUAL=False, WIDTH=triton.next_power_of_2(size),
        )  # fmt: skip
    return out


def add_rms_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the norm of hidden + residual, and hidden + residual; all (T, D)."""
    check_floats(hidden, 2, "hidden")
    check_floats(residual, 2, "residual")
    check_floats(weight, 1, "weight")
    num_rows, size = hidden.shape
    require(
        hidden.shape == residual.shape and weight.numel() == size,
        f"hidden {list(hidden.shape)}, residual {list(residual.shape)} and weight"
        f" {list(weight.shape)} do not fit.",
    )
    out, total = torch.empty_like(hidden), torch.empty_like(hidden)
    if num_rows:
        _norm_kernel[(num_rows,)](
            hidden, residual, weight, total, out, size, eps,
            HAS_RESIDUAL=True, WIDTH=triton.next_power_of_2(size),
        )  # fmt: skip
    return out, total
