"""The AVX-512 version computes what the AVX2 version does, its intrinsics spelt out lane by lane.

So its arithmetic is checked on machines that lack the instructions; their speed is not.
"""

import hashlib
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from understudy_kernels import load
from understudy_kernels.compiling import SOURCES, library_path

HERE = Path(__file__).parent
EMULATION, COMPARISON = HERE / "emulated_avx512.h", HERE / "compare_isas.cpp"
FLAGS = ("-std=c++20", "-O1", "-mavx2", "-mfma", "-mf16c", "-ffp-contract=off", "-w")


@pytest.mark.timeout(600)
def test_emulated_avx512_kernels_equal_the_avx2_kernels(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None or load().isa == "reference":
        pytest.skip("nothing can be compiled here, or there is no AVX2 to compare with")
    program = library_path().parent / f"compare-{_digest()}"
    if not program.exists():
        built = _build(compiler, tmp_path)
        shutil.copy(built, program.with_suffix(".draft"))
        program.with_suffix(".draft").replace(program)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n"


def _digest() -> str:
    """What the program depends on beyond what its folder is named after."""
    content = EMULATION.read_bytes() + COMPARISON.read_bytes() + repr(FLAGS).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _build(compiler: str, folder: Path) -> Path:
    program = folder / "compare"
    units = {
        "avx2": [SOURCES / "isa.cpp", '-DUNDERSTUDY_ISA="avx2"', "-DUNDERSTUDY_TABLE=avx2_kernels"],
        "avx512": [
            SOURCES / "isa.cpp",
            *('-DUNDERSTUDY_ISA="avx512"', "-DUNDERSTUDY_TABLE=avx512_kernels"),
            *("-include", EMULATION),
        ],
        "comparison": [COMPARISON, f"-I{SOURCES}"],
    }

    def compile_unit(name: str) -> str:
        target = str(folder / f"{name}.o")
        arguments = map(str, units[name])
        subprocess.run([compiler, *FLAGS, "-c", *arguments, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_unit, units))
    subprocess.run([compiler, *objects, "-o", str(program)], check=True)
    return program
