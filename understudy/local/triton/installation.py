"""Where the Triton server lies once `deploy/tools/install_triton.py` has unpacked it."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from understudy.errors import FailedPrecondition

WHEEL: Final = "nvidia-pytriton-0.7.0"
"""The wheel's server is 2.51; its python backend has a stub for each Python version."""
INSTALL: Final = "python deploy/tools/install_triton.py"


@dataclass(frozen=True, slots=True)
class Installation:
    """An unpacked server; the wheel's layout is kept because the binaries find libraries by it."""

    root: Path

    @property
    def home(self) -> Path:
        """The folder of the server."""
        return self.root / "pytriton" / "tritonserver"

    @property
    def server(self) -> Path:
        """The server's binary."""
        return self.home / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """The folder of backends."""
        return self.home / "backends"

    @property
    def stub(self) -> Path:
        """The process that runs a python model; its Python version must be that of torch."""
        return self.backends / "python" / "triton_python_backend_stub"

    @property
    def stubs(self) -> Path:
        """The folder of stubs by Python version."""
        return self.home / "python_backend_stubs"

    @property
    def libraries(self) -> Path:
        """The folder in which the binaries look for shared libraries."""
        return self.root / "nvidia_pytriton.libs"


def cached_triton(environ: Mapping[str, str]) -> Installation:
    """Return where the server lies, or will, for this Python version."""
    cache = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = f"{WHEEL}-py{sys.version_info.major}.{sys.version_info.minor}"
    return Installation(Path(cache) / "understudy" / "tools" / name)


def find_triton(environ: Mapping[str, str]) -> Installation | None:
    """Return the unpacked server, None where there is none."""
    found = cached_triton(environ)
    return found if found.server.is_file() and found.stub.is_file() else None


def require_triton(environ: Mapping[str, str]) -> Installation:
    """Return the unpacked server. Raises FailedPrecondition with the remedy."""
    found = find_triton(environ)
    if found is None:
        raise FailedPrecondition(
            f"The Triton server is not in {cached_triton(environ).root}: run `{INSTALL}`."
        )
    return found
