"""What a process does with memory that it no longer needs."""

import ctypes
import gc


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library can.

    Loading a model frees as much as it keeps, in pieces that glibc holds on to for ever.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
