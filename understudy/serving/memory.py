"""What a process does with memory that it no longer needs."""

import ctypes
import gc
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 128 << 10


def return_large_buffers() -> None:
    """Let every buffer from 128 KiB on go back to the system when it is freed, where glibc serves.

    Left to itself glibc raises that size to the largest buffer that was ever freed, so that the
    heap keeps what one step of a prompt took: 10 MiB of a worker of SmolLM2 after its first
    request, 60 after its first grammar (`benchmarks.engine` prints both). A decode step pays for it
    with the page faults of its logits, 0.05 ms.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library can.

    Loading a model frees as much as it keeps, in pieces that glibc holds on to for ever.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
