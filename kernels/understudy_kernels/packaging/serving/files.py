"""Opens the files of a package that was checked: weights, the compiled program, the kernels."""

import json
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from .manifest import FILL, LIBRARY, WEIGHTS, PackageError, check_package

MAX_HEADER_BYTES: Final = 100 << 20
_DTYPES: Final = {
    "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
    "U8": torch.uint8,
}  # fmt: skip


class Compiled(Protocol):
    """AOTInductor's loader of one compiled program."""

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """Run the program."""
        ...


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Map a safetensors file into memory; processes that map the same file share its pages."""
    size = path.stat().st_size
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    header_bytes = int.from_bytes(content[:8].numpy().tobytes(), "little")
    if header_bytes > min(MAX_HEADER_BYTES, size - 8):
        raise PackageError(f"{path} has a header of {header_bytes} bytes; that cannot be.")
    header = json.loads(content[8 : 8 + header_bytes].numpy().tobytes())
    data = content[8 + header_bytes :]
    return {
        name: data[slice(*entry["data_offsets"])].view(_DTYPES[entry["dtype"]]).view(entry["shape"])
        for name, entry in header.items()
        if entry.get("dtype") in _DTYPES and not name.startswith(FILL)
    }


def open_compiled(path: Path) -> Compiled:
    """Load a compiled program. Raises PackageError where torch cannot."""
    try:
        # `torch._inductor.aoti_load_package` is the same and imports the compiler: three seconds.
        loader: Compiled = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)  # noqa: SLF001
    except RuntimeError as error:
        raise PackageError(f"torch cannot load {path}: {error}") from error
    return loader


def load_kernels(path: Path) -> None:
    """Register the kernels of a package with torch, where this process has none yet.

    Raises PackageError where the library cannot be loaded.
    """
    try:
        torch.ops.understudy.decoder_layers  # noqa: B018  # torch looks operators up by name
    except AttributeError:
        try:
            torch.ops.load_library(str(path))
        except (OSError, RuntimeError) as error:
            raise PackageError(f"{path} cannot be loaded: {error}") from error


class Opened:
    """A checked package of one kind: its manifest, its programs and its weights."""

    def __init__(self, kind: str, directory: Path, config_digest: str | None) -> None:
        """Check and open. Raises PackageError."""
        self.manifest = check_package(directory, config_digest)
        if self.manifest.kind != kind:
            raise PackageError(f"The package is of kind {self.manifest.kind!r}, not {kind!r}.")
        if self.manifest.needs_library:
            load_kernels(directory / LIBRARY)
        self.programs = [open_compiled(directory / name) for name in self.manifest.programs]
        self.weights = map_tensors(directory / WEIGHTS)
