"""SwiGLU feed-forwards and mixtures of them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from understudy_kernels.reference.checks import check_floats, require
from understudy_kernels.reference.linear import check_formats, multiply, rms_norm


def swiglu(
    hidden: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    formats: Sequence[int],
    ffn_size: int,
    exact: bool,
) -> Tensor:
    """Return down(silu(gate(hidden)) * up(hidden)), (T, D)."""
    check_floats(hidden, 2, "hidden")
    check_formats(formats, 3)
    inner = functional.silu(multiply(hidden, gate, formats[0], ffn_size, exact))
    inner = inner * multiply(hidden, up, formats[1], ffn_size, exact)
    return multiply(inner, down, formats[2], hidden.shape[1], exact)


def normed_swiglu(
    hidden: Tensor,
    weight: Tensor,
    eps: float,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    formats: Sequence[int],
    ffn_size: int,
    exact: bool,
) -> Tensor:
    """Return hidden + swiglu(rms_norm(hidden)), (T, D)."""
    check_floats(hidden, 2, "hidden")
    normed = rms_norm(hidden, weight, eps)
    return hidden + swiglu(normed, gate, up, down, formats, ffn_size, exact)


def swiglu_experts(
    hidden: Tensor,
    ids: Tensor,
    gates: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    formats: Sequence[int],
    ffn_size: int,
    first_expert: int,
    exact: bool,
) -> Tensor:
    """Return the gate-weighted sum (T, D) over the experts held here, in ascending id.

    Stacks hold experts first_expert, first_expert + 1, ...; choices of others, and of weight 0,
    add nothing.
    """
    check_floats(hidden, 2, "hidden")
    check_floats(gates, 2, "gates")
    check_formats(formats, 3)
    require(
        ids.dtype == torch.int64
        and ids.is_contiguous()
        and ids.dim() == 2
        and ids.shape == gates.shape
        and ids.shape[0] == hidden.shape[0],
        f"ids (int64) and gates must both be ({hidden.shape[0]}, experts per token), they are"
        f" {list(ids.shape)} and {list(gates.shape)}.",
    )
    num_experts = gate.shape[0]
    for stack in (gate, up, down):
        require(
            stack.dim() == 2 and stack.shape[0] == num_experts and stack.is_contiguous(),
            f"packed experts must be ({num_experts}, bytes) and contiguous, they are"
            f" {list(stack.shape)}.",
        )
    for negative in ids[ids < 0].tolist():
        require(False, f"expert ids must not be negative, one is {negative}.")
    total = torch.zeros_like(hidden)
    for expert in range(num_experts):
        rows, choice = torch.where((ids == first_expert + expert) & (gates != 0))
        if rows.numel():
            parts = (gate[expert], up[expert], down[expert])
            partial = swiglu(hidden[rows], *parts, formats, ffn_size, exact)
            total.index_add_(0, rows, partial * gates[rows, choice].unsqueeze(-1))
    return total
