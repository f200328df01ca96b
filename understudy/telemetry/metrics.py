"""Declares Prometheus instruments under one naming rule: `understudy_<service>_<what>_<unit>`.

What OpenTelemetry's GenAI conventions name keeps their name, as Prometheus spells it.

Each service declares its instruments once, in its `metrics.py`, on the registry it hands to
`serve()`, which exposes them. Registries are passed, never global, so tests stay apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from opentelemetry.trace import SpanContext, format_trace_id
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""From a step of the SLM to a long generation."""


@dataclass(frozen=True, slots=True)
class Instruments:
    """Makes the instruments of one service on one registry."""

    service: str
    """Service name as it appears in metric names, such as `router`."""
    registry: CollectorRegistry
    """Where the instruments are registered."""

    def counter(self, what: str, help: str, labels: Sequence[str] = (), unit: str = "") -> Counter:  # noqa: A002
        """A count that only grows; `_total` is appended by the exposition."""
        return Counter(self._name(what, unit), help, labels, registry=self.registry)

    def gauge(self, what: str, help: str, labels: Sequence[str] = (), unit: str = "") -> Gauge:  # noqa: A002
        """A value that goes up and down."""
        return Gauge(self._name(what, unit), help, labels, registry=self.registry)

    def histogram(
        self,
        what: str,
        help: str,  # noqa: A002
        labels: Sequence[str] = (),
        unit: str = "seconds",
        buckets: Sequence[float] = SECONDS_BUCKETS,
    ) -> Histogram:
        """A distribution over `buckets` (upper bounds in `unit`)."""
        return Histogram(
            self._name(what, unit), help, labels, registry=self.registry, buckets=buckets
        )

    def convention(
        self,
        name: str,
        help: str,  # noqa: A002
        labels: Sequence[str],
        buckets: Sequence[float] = SECONDS_BUCKETS,
    ) -> Histogram:
        """A distribution of seconds that OpenTelemetry's conventions name, such as `gen_ai.x`."""
        prometheus_name = f"{name.replace('.', '_')}_seconds"
        return Histogram(prometheus_name, help, labels, registry=self.registry, buckets=buckets)

    def _name(self, what: str, unit: str) -> str:
        return "_".join(part for part in ("understudy", self.service, what, unit) if part)


def exemplar(context: SpanContext) -> dict[str, str] | None:
    """Return what links a measured value to its trace; None where the trace is not kept."""
    if not context.is_valid or not context.trace_flags.sampled:
        return None
    return {"trace_id": format_trace_id(context.trace_id)}
