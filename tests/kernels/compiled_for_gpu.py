"""The GPU kernels through Triton's compiler and the assembler, for GPUs that are not there.

Run as a program by test_gpu.py with a compute capability and 0 or 1: every other case, from there
on, is launched at a driver that compiles, to machine code, and computes nothing.
"""

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from tests.kernels.gpu_cases import cases
from understudy_kernels import gpu

WARP = 32
SHARED_BYTES = 99 << 10
"""What the smallest GPUs of these generations offer to a program."""


class Absent:
    """A device that kernels are compiled for."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, WARP)


def main(capability: int, start: int) -> int:
    driver.set_active(Absent(capability))
    launch, made = JITFunction.run, set[str]()

    def compile_only(self: JITFunction, *arguments: object, **options: object) -> object:
        kernel = launch(self, *arguments, **{**options, "warmup": True})
        name = f"{self.fn.__name__} for {capability}"
        if not kernel.asm.get("cubin"):
            sys.exit(f"{name} has no machine code.")
        if kernel.metadata.shared > SHARED_BYTES:
            sys.exit(f"{name} takes {kernel.metadata.shared} bytes of shared memory.")
        made.add(self.fn.__name__)
        return kernel

    JITFunction.run = compile_only
    for name, arguments in list(cases())[start::2]:
        gpu.GPU[name](*arguments)
    sys.stdout.write(" ".join(sorted(made)) + "\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
