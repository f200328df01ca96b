"""Memory that a Triton server on this host maps too, so that large tensors need no socket."""

import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch
from torch import Tensor

from understudy.exchange.tensors import tensor_view

DIRECTORY: Final = Path("/dev/shm")  # noqa: S108  # where the kernel has it
ALIGNMENT: Final = 64


class SharedRegion:
    """One region, used for one call at a time; `unlink` it once the server has it."""

    def __init__(self, size_bytes: int) -> None:
        """Create the region. Raises OSError where the host has no room."""
        self.name = f"understudy_experts_{os.getpid()}_{secrets.token_hex(8)}"
        self.size_bytes = size_bytes
        self._path = DIRECTORY / self.name
        descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
            self._map = mmap.mmap(descriptor, size_bytes)
        except OSError:
            self._path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def unlink(self) -> None:
        """Take its name away: whoever maps it keeps it, and a killed process leaves none."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmap and remove it; a server that has it registered keeps its own mapping."""
        self.unlink()
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
        """Write tensors from the start on; returns offset and length of each in bytes."""
        places: list[tuple[int, int]] = []
        end = 0
        for tensor in tensors:
            view = tensor_view(tensor)
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + len(view)
            self._map[start:end] = view.tobytes() if not view.contiguous else view
            places.append((start, len(view)))
        return places

    def read(self, offset: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a copy of the tensor that lies at an offset."""
        tensor = torch.empty(tuple(shape), dtype=dtype)
        view = tensor_view(tensor)
        view[:] = memoryview(self._map)[offset : offset + len(view)]
        return tensor
