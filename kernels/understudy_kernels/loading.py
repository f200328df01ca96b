"""Registers the operators with torch, once: compiled where that is possible, else the reference.

Importing the package does nothing; `load()` compiles where no library is cached yet (about a minute
on one core; `python -m understudy_kernels.build` does it ahead of time).
"""

import ctypes
import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from understudy.errors import FailedPrecondition
from understudy_kernels.compiling import build
from understudy_kernels.fakes import FAKES
from understudy_kernels.reference import REFERENCE
from understudy_kernels.schemas import NAMESPACE, SCHEMAS

LOG: Final = logging.getLogger(__name__)
SUPPORTED: Final = ("AVX2", "AVX512")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What serves the operators on the CPU, and the registrations that live as long as it."""

    isa: str
    """avx2, avx512, or reference."""
    libraries: tuple[torch.library.Library, ...]


@functools.cache
def load() -> Loaded:
    """Register every operator; later calls return what the first one did.

    Never fails for want of a compiler or an instruction set: one warning says why the reference
    serves, and what to do.
    """
    try:
        _check_processor()
        isa = _load_library(build())
        libraries = []
    except FailedPrecondition as error:
        LOG.warning("Compiled kernels are off: %s", error.message)
        isa, libraries = "reference", [_register_reference()]
    for name, fake in FAKES.items():
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    if torch.cuda.is_available():
        libraries.append(_register_gpu())
    return Loaded(isa, tuple(libraries))


def _check_processor() -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in SUPPORTED:
        raise FailedPrecondition(
            f"this processor offers {capability}, the kernels need AVX2 or AVX-512; the torch"
            " reference serves, slowly."
        )


def _load_library(path: Path) -> str:
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        raise FailedPrecondition(
            f"{path} cannot be loaded ({error}); delete it and run"
            " `python -m understudy_kernels.build`."
        ) from error
    name = ctypes.CDLL(str(path)).understudy_kernels_isa
    name.restype = ctypes.c_char_p
    return bytes(name()).decode()


def _register_reference() -> torch.library.Library:
    library = torch.library.Library(NAMESPACE, "DEF")
    for name, schema in SCHEMAS.items():
        library.define(name + schema)
        library.impl(name, REFERENCE[name], "CPU")
    return library


def _register_gpu() -> torch.library.Library:
    from understudy_kernels.gpu import GPU

    library = torch.library.Library(NAMESPACE, "IMPL")
    for name, reference in REFERENCE.items():
        library.impl(name, GPU.get(name, reference), "CUDA")
    return library
