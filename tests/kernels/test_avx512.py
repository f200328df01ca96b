"""The AVX-512 version computes what the AVX2 version does, its intrinsics spelt out lane by lane.

So its arithmetic is checked on machines that lack the instructions; their speed is not.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from understudy_kernels import load
from understudy_kernels.compiling import SOURCES

HERE = Path(__file__).parent
FLAGS = ("-std=c++20", "-O1", "-mavx2", "-mfma", "-mf16c", "-ffp-contract=off", "-w")


def test_emulated_avx512_kernels_equal_the_avx2_kernels(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None or load().isa == "reference":
        pytest.skip("nothing can be compiled here, or there is no AVX2 to compare with")
    emulation = ("-include", str(HERE / "emulated_avx512.h"))
    objects = []
    for isa, extra in (("avx2", ()), ("avx512", emulation)):
        target = str(tmp_path / f"{isa}.o")
        names = (f'-DUNDERSTUDY_ISA="{isa}"', f"-DUNDERSTUDY_TABLE={isa}_kernels")
        command = [compiler, *FLAGS, *extra, *names, "-c", str(SOURCES / "isa.cpp"), "-o", target]
        subprocess.run(command, check=True)
        objects.append(target)
    program = str(tmp_path / "compare")
    source = str(HERE / "compare_isas.cpp")
    subprocess.run([compiler, *FLAGS, f"-I{SOURCES}", source, *objects, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n"
