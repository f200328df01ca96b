"""Compiling the C++ operators into a cache outside the checkout.

The library goes to a cache folder named after a digest of sources, flags and torch's version, so a
second build is a look-up and a changed source never meets an old library. Each instruction set is
compiled apart with its own flags and chosen when the library runs, so one build serves every x86-64
machine. Nothing here goes through a shell.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from understudy.errors import FailedPrecondition
from understudy_kernels.schemas import NAMESPACE, SCHEMAS

LOG: Final = logging.getLogger(__name__)
SOURCES: Final = Path(__file__).parent / "cpu"
TORCH: Final = Path(torch.__file__).parent
LIBRARY: Final = "understudy_kernels.so"
TIMEOUT_S: Final = 600
COMMON_FLAGS: Final = (
    "-std=c++20", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-DNDEBUG",
    # A contraction chosen by the compiler could differ between one row and many.
    "-ffp-contract=off", "-fno-math-errno",
    # GCC 12 warns about its own AVX-512 headers.
    "-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-Wno-uninitialized",
)  # fmt: skip
ISA_FLAGS: Final[Mapping[str, tuple[str, ...]]] = {
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        "-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq",
        "-mavx512vnni",
    ),
}  # fmt: skip


def library_path(environ: Mapping[str, str] | None = None) -> Path:
    """Return where the library of these sources and this torch is, or will be."""
    given = os.environ if environ is None else environ
    cache = Path(given.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / NAMESPACE / "kernels" / digest() / LIBRARY


def digest() -> str:
    """Return what a build depends on, as 16 hexadecimal digits."""
    hashed = hashlib.sha256()
    flags = repr((COMMON_FLAGS, sorted(ISA_FLAGS.items()), sorted(SCHEMAS.items())))
    for part in (torch.__version__, platform.machine(), flags):
        hashed.update(part.encode() + b"\0")
    for source in sorted(SOURCES.iterdir()):
        hashed.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return hashed.hexdigest()[:16]


def build(target: Path | None = None, compiler: str | None = None) -> Path:
    """Return the library, compiled where it is not there yet.

    Raises FailedPrecondition with the remedy where the machine has no compiler, another processor
    family, or the compiler refuses.
    """
    library = library_path() if target is None else target
    if library.exists():
        return library
    if platform.machine() not in ("x86_64", "AMD64"):
        raise FailedPrecondition(
            f"The compiled kernels are for x86-64, this machine is {platform.machine()}; the torch"
            " reference serves instead."
        )
    found = shutil.which(compiler or "g++")
    if found is None:
        raise FailedPrecondition(
            f"No compiler {compiler or 'g++'} is installed, so the torch reference serves instead;"
            " install g++ 11 or later and run `python -m understudy_kernels.build`."
        )
    library.parent.mkdir(parents=True, exist_ok=True)
    with _only_builder(library.parent):
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=library.parent) as folder:
                _compile(found, Path(folder), library)
    return library


@contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    """Wait until no other process builds into `folder`; one that dies gives way by itself."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOG.info("Waiting for another process that compiles the kernels.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True)
class _Unit:
    """One object file: a source and what it is compiled with."""

    name: str
    source: str
    flags: tuple[str, ...]


def _compile(compiler: str, folder: Path, library: Path) -> None:
    started = time.monotonic()
    LOG.info("Compiling the kernels, once for this machine: about half a minute on two cores.")
    lines = [f'm.def("{name}{schema}");' for name, schema in SCHEMAS.items()]
    (folder / "schemas.inc").write_text("\n".join(lines) + "\n")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        building = [pool.submit(_object, compiler, folder, unit) for unit in _units(folder)]
        objects = [each.result() for each in building]
    finished = folder / LIBRARY
    libraries = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
    _run([compiler, "-shared", "-fopenmp", "-o", str(finished), *objects, *libraries], "linking")
    # A reader sees the whole library or none.
    finished.replace(library)
    LOG.info("Compiled the kernels in %.0f s.", time.monotonic() - started)


def _units(folder: Path) -> list[_Unit]:
    """Return what is compiled, the longest first."""
    include = TORCH / "include"
    headers = (f"-I{folder}", f"-isystem{include}", f"-isystem{include}/torch/csrc/api/include")
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    isas = [
        _Unit(
            isa,
            "isa.cpp",
            (*flags, f'-DUNDERSTUDY_ISA="{isa}"', f"-DUNDERSTUDY_TABLE={isa}_kernels"),
        )
        for isa, flags in ISA_FLAGS.items()
    ]
    bindings = _Unit("bindings", "bindings.cpp", (*headers, abi))
    return [bindings, *isas, _Unit("sampling", "sampling.cpp", ())]


def _object(compiler: str, folder: Path, unit: _Unit) -> str:
    result = str(folder / f"{unit.name}.o")
    command = [compiler, *COMMON_FLAGS, *unit.flags, "-c", str(SOURCES / unit.source), "-o", result]
    _run(command, f"compiling {unit.source} ({unit.name})")
    return result


def _run(command: Sequence[str], what: str) -> None:
    started = time.monotonic()
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments, no shell
            command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedPrecondition(f"The kernels' build failed while {what}: {error}.") from error
    if done.returncode != 0:
        raise FailedPrecondition(
            f"The kernels' build failed while {what}; the compiler says: {done.stderr[:2000]}"
        )
    LOG.debug("%s took %.1f s", what, time.monotonic() - started)
