"""Instruments of the controller, each declared once."""

from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge

from understudy.telemetry import Instruments


@dataclass(frozen=True, slots=True)
class ControllerMetrics:
    """The state of the tables."""

    replicas: Gauge
    """Healthy expert workers, by pool."""
    epochs: Counter
    """Tables published, by pool."""
    watchers: Gauge
    """Streams that wait for newer tables."""

    @classmethod
    def on(cls, registry: CollectorRegistry) -> Self:
        """Declare the instruments on a registry."""
        make = Instruments("controller", registry)
        return cls(
            replicas=make.gauge("replicas", "Healthy expert workers, by pool.", ["pool"]),
            epochs=make.counter("tables", "Tables published, by pool.", ["pool"]),
            watchers=make.gauge("watchers", "Streams that wait for newer tables."),
        )
