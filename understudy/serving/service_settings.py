"""What every service reads beside its own settings."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from understudy.serving.settings import SettingsError, read_settings

PREFIX: Final = "UNDERSTUDY_SERVING_"
_DOMAIN: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """Settings of the chassis, the same for every service."""

    listen: str = "127.0.0.1:0"
    """Address of the gRPC server; port 0 takes a free one, which the ready line tells."""
    metrics_listen: str = ""
    """Address of the Prometheus endpoint; empty (default) means none. Loopback unless set."""
    drain_grace_s: float = 20.0
    """Seconds that running calls get to finish after SIGTERM; a router has one of its own."""
    otlp_endpoint: str = ""
    """OTLP/gRPC collector, such as http://127.0.0.1:4317; empty (default) means no traces."""
    trace_sample_ratio: float = 1.0
    """Share of new traces that are sampled, 0 to 1; a caller's own decision is kept."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged."""
    ready_file: Path | None = None
    """Written once the service is ready: JSON with port, metrics_port and pid."""
    max_call_s: float = 600.0
    """Deadline of calls that come without one; endless streams have none."""
    max_concurrent_calls: int = 1000
    """Calls served at once; more are refused with RESOURCE_EXHAUSTED."""
    max_connection_age_s: float = 0.0
    """Closes connections after this long, so that load reaches new replicas; 0 (default): never."""
    tls_dir: Path | None = None
    """Folder with tls.crt, tls.key and ca.crt: calls between services then need certificates on
    both sides. Empty (default): plaintext. New files are taken up at once."""
    tls_domain: str = "understudy"
    """Certificates name `<component>.<domain>`, such as experts.understudy."""
    health_listen: str = ""
    """Further address that answers health checks only, in plaintext, for probes that have no
    certificate; empty (default) means none."""

    def __post_init__(self) -> None:
        _require_number(self.drain_grace_s, "DRAIN_GRACE_S", 0, 86_400)
        _require_number(self.trace_sample_ratio, "TRACE_SAMPLE_RATIO", 0, 1)
        _require_number(self.max_call_s, "MAX_CALL_S", 0.001, 86_400)
        _require_number(self.max_concurrent_calls, "MAX_CONCURRENT_CALLS", 1, 1_000_000)
        if not _DOMAIN.fullmatch(self.tls_domain):
            raise SettingsError(
                f"{PREFIX}TLS_DOMAIN is {self.tls_domain!r}; set a DNS name such as understudy."
            )
        _require_number(self.max_connection_age_s, "MAX_CONNECTION_AGE_S", 0, 86_400)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "ServingSettings":
        """Read `UNDERSTUDY_SERVING_*`."""
        return read_settings(cls, PREFIX, environ)


def _require_number(value: float, name: str, least: float, most: float) -> None:
    if math.isnan(value) or not least <= value <= most:
        raise SettingsError(f"{PREFIX}{name} is {value:g}; set {least:g} to {most:g}.")
