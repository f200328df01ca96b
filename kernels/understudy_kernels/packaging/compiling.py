"""Compiles exported programs with AOTInductor for this machine, each once.

A compiled program holds no weights, so it is named by the program, the torch version and the
instruction sets: bundles that differ in their weights alone share it. Compiling takes half a
minute and a C++ compiler; serving needs neither.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from understudy.errors import FailedPrecondition
from understudy_kernels.loading import load
from understudy_kernels.packaging.bundle import Bundle, read_program
from understudy_kernels.packaging.serving.manifest import FORMAT, machine_isa
from understudy_kernels.schemas import SCHEMAS

COMPILERS: Final = ("g++", "clang++", "c++")
log = logging.getLogger(__name__)


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Return where compiled programs are kept between runs and checkouts."""
    cache = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "understudy" / "packages"


def find_compiler(environ: Mapping[str, str]) -> str:
    """Return the C++ compiler that AOTInductor will use. Raises FailedPrecondition."""
    wanted = environ.get("CXX")
    for name in (wanted,) if wanted else COMPILERS:
        found = shutil.which(name, path=environ.get("PATH"))
        if found is not None:
            return found
    raise FailedPrecondition(
        f"AOTInductor needs a C++ compiler, and {wanted or 'g++'} is not on PATH: install one"
        " (`apt install g++`), set CXX, or take packages made on a machine of the same kind."
    )


def compile_programs(directory: Path, bundle: Bundle, cache: Path) -> list[Path]:
    """Return the compiled programs of the bundle in `directory`, from `cache` where they are there.

    Raises FailedPrecondition without a compiler, and where a compilation fails.
    """
    numbers = range(len(bundle.program_digests))
    return [_compile(directory, bundle, number, cache) for number in numbers]


def _compile(directory: Path, bundle: Bundle, number: int, cache: Path) -> Path:
    target = cache / f"{_key(bundle, number)}.pt2"
    if target.is_file():
        return target
    compiler = find_compiler(os.environ)
    if bundle.arithmetic != "reference":
        load()  # the program names operators, which torch must know
    log.info(
        "Compiling program %d of %s with %s; about half a minute.", number, bundle.name, compiler
    )
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InductorError

    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        draft = Path(scratch) / "compiled.pt2"
        try:
            with torch.no_grad():
                aoti_compile_and_package(read_program(directory, number), package_path=str(draft))
        except (InductorError, OSError, RuntimeError) as error:
            raise FailedPrecondition(
                f"The program of {bundle.name} does not compile with {compiler}: {error}"
            ) from error
        draft.replace(target)
    return target


def _key(bundle: Bundle, number: int) -> str:
    operators = () if bundle.arithmetic == "reference" else (repr(sorted(SCHEMAS.items())),)
    parts = (
        str(FORMAT),
        bundle.program_digests[number],
        torch.__version__,
        *machine_isa(),
        *operators,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
