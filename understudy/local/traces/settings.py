"""Settings of the trace store process."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from understudy.local.traces.store import DEFAULT_MAX_SPANS, MAX_TRACE_SPANS
from understudy.serving import SettingsError, read_settings

PREFIX: Final = "UNDERSTUDY_TRACES_"


@dataclass(frozen=True, slots=True)
class TracesSettings:
    """What `python -m understudy.local.traces` reads from the environment."""

    listen: str = "127.0.0.1:4317"
    """Address of the OTLP/gRPC receiver; 4317 is OTLP's own port, 0 takes a free one."""
    path: Path = Path(".understudy/traces.sqlite")
    """SQLite file; its folder is created."""
    max_spans: int = DEFAULT_MAX_SPANS
    """Spans kept, at least 5,000; the oldest traces make room. 200,000 are about 150 MB."""
    ready_file: Path | None = None
    """Written once spans can be received: JSON with port, metrics_port and pid."""

    def __post_init__(self) -> None:
        if self.max_spans < MAX_TRACE_SPANS:
            raise SettingsError(
                f"{PREFIX}MAX_SPANS is {self.max_spans}; set at least {MAX_TRACE_SPANS}."
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "TracesSettings":
        """Read `UNDERSTUDY_TRACES_*`."""
        return read_settings(cls, PREFIX, environ)
