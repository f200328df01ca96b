"""Refusals of input that the operators' schemas cannot express; C++ refuses the same."""

import torch
from torch import Tensor

from understudy_kernels.formats import Format, packed_bytes


def require(is_met: bool, message: str) -> None:
    """Raise ValueError, as the compiled operators do; `ops` turns it into Internal."""
    if not is_met:
        raise ValueError(message)


def check_floats(tensor: Tensor, dims: int, name: str) -> None:
    """Refuse anything but a float32 tensor of `dims` dimensions."""
    require(tensor.dtype == torch.float32, f"{name} must be float32, it is {tensor.dtype}.")
    require(tensor.dim() == dims, f"{name} must have {dims} dimensions, it has {tensor.dim()}.")
    require(tensor.is_contiguous(), f"{name} must be contiguous.")


def checked_format(packed: Tensor, number: int, num_out: int, num_in: int) -> Format:
    """Return the format of `packed`, refusing what cannot be a weight (num_out, num_in)."""
    require(0 <= number < len(Format), f"format {number} does not exist.")
    kind = Format(number)
    unit = kind.unit_inputs if kind.is_quantised else 1
    require(
        num_out > 0 and num_in > 0 and num_in % unit == 0,
        f"a weight of {num_out} x {num_in} cannot have format {number}: inputs come in units of"
        f" {unit}.",
    )
    size = packed_bytes(kind, num_out, num_in)
    require(
        packed.dtype == torch.uint8 and packed.is_contiguous() and packed.numel() == size,
        f"packed must be {size} contiguous bytes for {num_out} x {num_in} in format {number}, it"
        f" has {packed.numel()}.",
    )
    return kind
