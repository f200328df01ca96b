"""Linear layers over packed weights, the embedding table, and norms."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from understudy_kernels.formats import BLOCK
from understudy_kernels.reference.checks import check_floats, checked_format, require
from understudy_kernels.reference.unpack import unpack

INT8_LIMIT = 127.0


def quantise_activations(hidden: Tensor) -> Tensor:
    """Return `hidden` (T, K) rounded to int8 with one scale per 32 values, as float32.

    What is not a finite number makes its whole block not a number, so that it is noticed.
    """
    blocks: Tensor = hidden.unflatten(-1, (-1, BLOCK))
    magnitudes = blocks.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(magnitudes > 0, INT8_LIMIT / magnitudes, 0.0)
    is_finite = magnitudes.isfinite()
    values = torch.where(is_finite, (blocks * inverse).round(), torch.nan)
    return (values * (magnitudes / INT8_LIMIT)).flatten(-2)


def multiply(hidden: Tensor, packed: Tensor, number: int, num_out: int, exact: bool) -> Tensor:
    """Return hidden (T, K) times the transposed weight (num_out, K)."""
    kind = checked_format(packed, number, num_out, hidden.shape[1])
    rows = hidden if exact or not kind.is_quantised else quantise_activations(hidden)
    return functional.linear(rows, unpack(packed, kind, num_out, hidden.shape[1]))


def quantised_linear(
    hidden: Tensor,
    packed: Tensor,
    format: int,  # noqa: A002
    num_out: int,
    bias: Tensor | None,
    residual: Tensor | None,
    exact: bool,
) -> Tensor:
    """Return hidden (T, K) @ weight^T (+ bias (N,)) (+ residual (T, N)), (T, N)."""
    check_floats(hidden, 2, "hidden")
    result = multiply(hidden, packed, format, num_out, exact)
    if bias is not None:
        result = result + _checked_vector(bias, num_out, "bias")
    if residual is not None:
        check_floats(residual, 2, "residual")
        require(
            residual.shape == result.shape,
            f"residual must have the result's shape {list(result.shape)}, it has"
            f" {list(residual.shape)}.",
        )
        result = result + residual
    return result


def quantised_embedding(
    ids: Tensor,
    packed: Tensor,
    format: int,  # noqa: A002
    num_out: int,
    num_in: int,
) -> Tensor:
    """Return rows `ids` (T,) of the table (num_out, num_in), (T, num_in)."""
    require(
        ids.dtype == torch.int64 and ids.dim() == 1 and ids.is_contiguous(),
        "ids must be a contiguous vector of int64.",
    )
    kind = checked_format(packed, format, num_out, num_in)
    for outside in ids[(ids < 0) | (ids >= num_out)].tolist():
        require(False, f"id {outside} is outside a table of {num_out} rows.")
    return unpack(packed, kind, num_out, num_in)[ids]


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return `hidden` (T, D) over its root mean square, times `weight` (D,)."""
    checked = _checked_vector(weight, hidden.shape[-1], "weight")
    return functional.rms_norm(hidden, checked.shape, checked, eps)


def add_rms_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the norm of hidden + residual, and hidden + residual; all (T, D)."""
    check_floats(hidden, 2, "hidden")
    check_floats(residual, 2, "residual")
    require(
        hidden.shape == residual.shape,
        f"hidden {list(hidden.shape)} and residual {list(residual.shape)} must have one shape.",
    )
    total = hidden + residual
    return rms_norm(total, weight, eps), total


def normed_linears(
    hidden: Tensor,
    weight: Tensor,
    eps: float,
    packed: Sequence[Tensor],
    formats: Sequence[int],
    num_outs: Sequence[int],
    bias: Tensor | None,
    exact: bool,
) -> Tensor:
    """Return several linear layers of rms_norm(hidden), side by side: (T, sum of num_outs)."""
    check_floats(hidden, 2, "hidden")
    check_formats(formats, len(packed))
    require(
        len(num_outs) == len(packed),
        f"num_outs must name {len(packed)}, it names {len(num_outs)}.",
    )
    normed = rms_norm(hidden, weight, eps)
    each = zip(packed, formats, num_outs, strict=True)
    result = torch.cat([multiply(normed, data, kind, out, exact) for data, kind, out in each], 1)
    return result if bias is None else result + _checked_vector(bias, result.shape[1], "bias")


def check_formats(formats: Sequence[int], count: int) -> None:
    """Refuse a list of formats that does not name each matrix once."""
    require(len(formats) == count, f"formats must name {count}, it names {len(formats)}.")


def _checked_vector(tensor: Tensor, size: int, name: str) -> Tensor:
    check_floats(tensor, 1, name)
    require(tensor.numel() == size, f"{name} must have {size} values, it has {tensor.numel()}.")
    return tensor
