"""The GPU kernels on the CPU, through Triton's interpreter: run as a program by test_gpu.py."""

import sys

import torch
from torch import Tensor

from tests.kernels.gpu_cases import cases
from understudy_kernels import gpu
from understudy_kernels.reference import REFERENCE


def apart(arguments: tuple[object, ...]) -> list[object]:
    """Copy the tensors, strides and all: operators write into caches."""
    return [_copy(each) if isinstance(each, Tensor) else each for each in arguments]


def _copy(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)


def compare(name: str, arguments: tuple[object, ...]) -> None:
    ours, theirs = apart(arguments), apart(arguments)
    found, wanted = gpu.GPU[name](*ours), REFERENCE[name](*theirs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    for mine, yours in zip(ours, theirs, strict=True):
        if isinstance(mine, Tensor) and isinstance(yours, Tensor):
            # A rounding that falls to the other side moves an int8 by one.
            step = 1.0 if mine.dtype == torch.int8 else 1e-4
            torch.testing.assert_close(mine.float(), yours.float(), rtol=1e-2, atol=step)


def main() -> int:
    done: dict[str, int] = dict.fromkeys(gpu.GPU, 0)
    for name, arguments in cases():
        try:
            compare(name, arguments)
        except AssertionError as error:
            shapes = [list(each.shape) if isinstance(each, Tensor) else each for each in arguments]
            sys.exit(f"{name} differs for {shapes}: {error}")
        done[name] += 1
    missing = [name for name, count in done.items() if not count]
    if missing:
        sys.exit(f"No case asks for {missing}.")
    sys.stdout.write("equal\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
