"""Instruments of the controller, each declared once."""

from dataclasses import dataclass
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.controller.scaling.deciding import Decision
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


@dataclass(frozen=True, slots=True)
class ScalingMetrics:
    """Decisions on the sizes of pools."""

    replicas: Gauge
    """Replicas by pool, part and kind: asked before, needed, decided."""
    changes: Counter
    """Decisions that changed a size, by pool, part and direction."""
    holds: Counter
    """Changes held back, by pool, part and cause."""
    failures: Counter
    """Decisions that could not be carried out, by pool and part."""
    gpus: Gauge
    """GPUs of the replicas decided."""
    cost: Gauge
    """Price an hour of the replicas decided."""
    ratio: Gauge
    """Fitted attention workers to one expert worker, by pool."""
    leading: Gauge
    """1 while this process decides, else 0."""

    @classmethod
    def on(cls, registry: CollectorRegistry) -> Self:
        """Declare the instruments on a registry."""
        make = Instruments("controller", registry)
        by_part = ["pool", "part"]
        return cls(
            replicas=make.gauge(
                "scaling_replicas", "Replicas: asked before, needed, decided.", [*by_part, "kind"]
            ),
            changes=make.counter(
                "scaling_changes", "Decisions that changed a size.", [*by_part, "direction"]
            ),
            holds=make.counter("scaling_holds", "Changes held back.", [*by_part, "cause"]),
            failures=make.counter(
                "scaling_failures", "Decisions that could not be carried out.", by_part
            ),
            gpus=make.gauge("scaling_gpus", "GPUs of the replicas decided."),
            cost=make.gauge("scaling_cost_per_hour", "Price an hour of the replicas decided."),
            ratio=make.gauge(
                "scaling_ratio", "Fitted attention workers to one expert worker.", ["pool"]
            ),
            leading=make.gauge("scaling_leading", "1 while this process decides, else 0."),
        )

    def count(self, decision: Decision) -> None:
        """Count one decision."""
        self.gpus.set(decision.gpus)
        self.cost.set(decision.cost_per_hour)
        for one in decision.parts:
            part = one.part.value
            for kind, value in (
                ("before", one.before), ("needed", one.needed), ("decided", one.replicas),
            ):  # fmt: skip
                self.replicas.labels(one.pool, part, kind).set(value)
            if one.replicas != one.before:
                direction = "up" if one.replicas > one.before else "down"
                self.changes.labels(one.pool, part, direction).inc()
            for hold in one.holds:
                self.holds.labels(one.pool, part, hold.cause.value).inc()
            if one.ratio is not None:
                self.ratio.labels(one.pool).set(one.ratio)
