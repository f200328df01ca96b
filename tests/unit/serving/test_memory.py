"""Freed memory goes back to the system, however large the buffers were that came before."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import ctypes
from understudy.serving.memory import return_large_buffers

class Info(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks used free keepcost".split()
    ]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
return_large_buffers()
libc.free(libc.malloc(8 << 20))
before = libc.mallinfo2().hblks
kept = libc.malloc(1 << 20)
print(libc.mallinfo2().hblks - before)
"""


def test_a_large_buffer_is_mapped_on_its_own_after_a_larger_one_was_freed():
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "mallinfo2")):
        pytest.skip("the C library is not glibc from 2.33 on, whose heap this is about")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
