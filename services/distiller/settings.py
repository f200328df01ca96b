"""Settings of the distiller, prefix UNDERSTUDY_DISTILLER_."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from understudy.serving import SettingsError, read_settings

PREFIX: Final = "UNDERSTUDY_DISTILLER_"


@dataclass(frozen=True, slots=True)
class DistillerSettings:
    """Where runs live and how much they may take."""

    directory: Path = Path("build/distiller")
    """Folder of runs, checkpoints and products; survives restarts, so a run resumes."""
    threads: int = 0
    """CPU threads of a run; 0 leaves the choice to torch."""
    max_queued: int = 32
    """Runs that may wait; more are refused, because each takes up to 75 minutes."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("THREADS", self.threads, 0),
            ("MAX_QUEUED", self.max_queued, 1),
        ):
            if value < least:
                raise SettingsError(f"{PREFIX}{name} is {value}; the least is {least}.")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the environment. Raises SettingsError naming a bad or unknown variable."""
        return read_settings(cls, PREFIX, environ)
