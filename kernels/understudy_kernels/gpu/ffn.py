"""SwiGLU, and experts as three grouped products over rows sorted by expert."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from understudy_kernels.gpu.linear import ROW_TILE, launch
from understudy_kernels.gpu.norm import rms_norm
from understudy_kernels.reference.checks import check_floats, require

WIDTH = 1024


@triton.jit
def _silu_kernel(gate_ptr, up_ptr, count, WIDTH: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    mask = at < count
    gate = tl.load(gate_ptr + at, mask=mask, other=0.0)
    up = tl.load(up_ptr + at, mask=mask, other=0.0)
    tl.store(gate_ptr + at, gate * tl.sigmoid(gate) * up, mask=mask)


def _swiglu_rows(
    hidden: Tensor,
    matrices: tuple[Tensor, Tensor, Tensor],
    formats: Sequence[int],
    ffn_size: int,
    exact: bool,
    groups: tuple[Tensor, Tensor] | None,
) -> Tensor:
    num_rows = hidden.shape[0] if groups is None else groups[0].shape[0]
    gate = hidden.new_zeros((num_rows, ffn_size))
    up = hidden.new_zeros((num_rows, ffn_size))
    launch(hidden, matrices[0], formats[0], ffn_size, gate, exact, groups)
    launch(hidden, matrices[1], formats[1], ffn_size, up, exact, groups)
    if gate.numel():
        _silu_kernel[(triton.cdiv(gate.numel(), WIDTH),)](gate, up, gate.numel(), WIDTH=WIDTH)
    out = hidden.new_zeros((num_rows, hidden.shape[1]))
    if groups is not None:
        # From here on the rows lie where the groups want them.
        own = torch.arange(num_rows, device=hidden.device, dtype=torch.int32)
        groups = (torch.where(groups[0] >= 0, own, -1).int(), groups[1])
    launch(gate, matrices[2], formats[2], hidden.shape[1], out, exact, groups)
    return out


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
    return _swiglu_rows(hidden, (gate, up, down), formats, ffn_size, exact, None)


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

    Rows are sorted by expert on the device and each expert's are padded to whole tiles, so the
    host waits for nothing.
    """
    check_floats(hidden, 2, "hidden")
    check_floats(gates, 2, "gates")
    require(
        ids.shape == gates.shape and ids.dtype == torch.int64 and ids.shape[0] == hidden.shape[0],
        "ids (int64) and gates must both be (T, experts per token).",
    )
    num_experts, num_choices = gate.shape[0], ids.shape[1]
    if hidden.shape[0] == 0 or num_experts == 0 or num_choices == 0:
        return torch.zeros_like(hidden)
    order = ids.argsort(dim=1)
    ids, gates = ids.gather(1, order), gates.gather(1, order)
    local = (ids - first_expert).flatten()
    is_held = (local >= 0) & (local < num_experts) & (gates.flatten() != 0)
    places, groups = _place(local, is_held, num_experts, num_choices)
    results = _swiglu_rows(hidden, (gate, up, down), formats, ffn_size, exact, groups)
    parts = results[places].view(*ids.shape, -1)
    weights = (gates * is_held.view(ids.shape)).unsqueeze(-1)
    total = torch.zeros_like(hidden)
    for choice in range(num_choices):
        total += parts[:, choice] * weights[:, choice]
    return total


def _place(
    local: Tensor, is_held: Tensor, num_experts: int, num_choices: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the padded row of each choice; source of each padded row and expert of each tile."""
    bins = torch.where(is_held, local, num_experts)
    ranked = bins.argsort(stable=True)
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=bins.device)
    counts.scatter_add_(0, bins, torch.ones_like(bins))
    padded = (counts[:num_experts] + ROW_TILE - 1) // ROW_TILE * ROW_TILE
    starts = padded.cumsum(0) - padded
    firsts = counts.cumsum(0) - counts
    num_tiles = -(-bins.numel() // ROW_TILE) + num_experts
    sorted_bins = bins[ranked]
    within = torch.arange(bins.numel(), device=bins.device) - firsts[sorted_bins]
    is_kept = sorted_bins < num_experts
    safe_starts = starts[sorted_bins.clamp(max=num_experts - 1)]
    rows = torch.where(is_kept, safe_starts + within, num_tiles * ROW_TILE)
    sources = torch.full((num_tiles * ROW_TILE + 1,), -1, dtype=torch.int32, device=bins.device)
    sources[rows] = torch.where(is_kept, ranked // num_choices, -1).int()
    places = torch.zeros_like(bins)
    places[ranked] = torch.where(is_kept, rows, 0)
    tile_starts = torch.arange(num_tiles, device=bins.device) * ROW_TILE
    ends = padded.cumsum(0)
    experts = torch.searchsorted(ends, tile_starts, right=True)
    experts = torch.where(experts < num_experts, experts, -1).int()
    return places, (sources[:-1].contiguous(), experts)
