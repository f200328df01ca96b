"""Settings of the local Triton process, prefix UNDERSTUDY_TRITON_."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from understudy.serving import read_settings

PREFIX: Final = "UNDERSTUDY_TRITON_"


@dataclass(frozen=True, slots=True)
class TritonSettings:
    """What `python -m understudy.local.triton` reads from the environment."""

    model: str
    """Weights whose feed-forwards are served, as for the expert worker."""
    compute: Literal["exact", "fast", "reference"] = "exact"
    """Arithmetic of the package, that of the expert workers."""
    directory: Path = Path(".understudy/triton")
    """Where the model repository and the server's log live."""
    grpc_port: int = 0
    """Port of the gRPC API on 127.0.0.1; 0 takes a free one."""
    ready_file: Path | None = None
    """Written once the model is loaded: JSON with port, metrics_port and pid."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings. Raises SettingsError naming what is bad or unknown."""
        return read_settings(cls, PREFIX, environ)
