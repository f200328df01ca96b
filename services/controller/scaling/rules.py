"""What scaling must keep to: objectives, bounds, budgets and paces, as plain data."""

from dataclasses import dataclass
from typing import Final

from services.controller.scaling.signals import Part

INFINITE: Final = float("inf")


@dataclass(frozen=True, slots=True)
class PartRules:
    """Bounds of one part of a pool."""

    min_replicas: int = 1
    """Fewest workers while the pool is awake."""
    max_replicas: int = 1
    """Most workers."""
    gpus: float = 0.0
    """GPUs of one worker."""
    cost_per_hour: float = 0.0
    """Price of one worker an hour, in the budget's currency."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas <= 10_000:
            raise ValueError(
                f"min_replicas {self.min_replicas} and max_replicas {self.max_replicas} must "
                "satisfy 1 <= min_replicas <= max_replicas <= 10000; a pool sleeps by idle_s."
            )
        if not (0 <= self.gpus <= 64 and 0 <= self.cost_per_hour <= 1e6):
            raise ValueError(
                f"gpus {self.gpus:g} and cost_per_hour {self.cost_per_hour:g} must be 0 to 64 and "
                "0 to 1000000."
            )


@dataclass(frozen=True, slots=True)
class PoolRules:
    """How one pool is sized."""

    name: str
    attention: PartRules
    experts: PartRules | None = None
    """None for a pool whose feed-forwards stay in the attention workers."""
    ttft_s: float = 2.0
    """Objective for the 90th percentile of the time to first token."""
    tpot_s: float = 0.1
    """Objective for the mean time per output token: what a request sees over its length."""
    utilisation: float = 0.6
    """Share of a worker's capacity within the objectives that the offered work may take."""
    kv_occupancy: float = 0.8
    """Share of KV blocks in use that more workers are called for at."""
    experts_utilisation: float = 0.7
    """Share of the time that expert workers may compute."""
    queue_wait_s: float = 0.02
    """Mean wait of a frame at an expert worker that more of them are called for at."""
    ratio_tolerance: float = 0.25
    """How far attention : experts may be from the fitted ratio, relative to it."""
    start_s: float = 180.0
    """Time from asking for a worker until it serves: demand is foreseen this far."""
    trend: float = 0.0
    """Share of the recent trend of demand that is extrapolated over `start_s`, 0 to 1."""
    backlog_s: float = 60.0
    """Time in which a backlog is to be worked off."""
    idle_s: float | None = None
    """Time without any request after which the pool sleeps with no worker; None: never."""

    def __post_init__(self) -> None:
        if min(self.ttft_s, self.tpot_s, self.queue_wait_s, self.backlog_s) <= 0:
            raise ValueError(f"The objectives and times of pool {self.name!r} must be positive.")
        shares = (self.utilisation, self.kv_occupancy, self.experts_utilisation)
        if not all(0.05 <= share <= 1 for share in shares):
            raise ValueError(f"The utilisations of pool {self.name!r} must be 0.05 to 1.")
        if not (0 <= self.trend <= 1 and 0 <= self.ratio_tolerance <= 4 and self.start_s >= 0):
            raise ValueError(
                f"Pool {self.name!r} needs trend 0 to 1, ratio_tolerance 0 to 4, start_s >= 0."
            )
        if self.idle_s is not None and self.idle_s <= 0:
            raise ValueError(f"idle_s of pool {self.name!r} must be positive, or null for never.")

    def parts(self) -> tuple[tuple[Part, PartRules], ...]:
        """Return the parts that this pool has."""
        attention = (Part.ATTENTION, self.attention)
        return (attention,) if self.experts is None else (attention, (Part.EXPERTS, self.experts))


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """Everything a decision keeps to."""

    pools: tuple[PoolRules, ...]
    """Pools, the most important first: it gets what is left of a budget when shares are equal."""
    max_gpus: float = INFINITE
    """GPUs that all pools hold at most, draining and starting workers included."""
    max_cost_per_hour: float = INFINITE
    """Price an hour of all workers at most."""
    up_cool_down_s: float = 15.0
    """Least time between two increases of a part."""
    down_cool_down_s: float = 60.0
    """Least time between any change of a part and a decrease."""
    down_window_s: float = 300.0
    """Stabilisation: a part is never made smaller than what it needed within this time."""
    retry_s: float = 300.0
    """How long a part stays below the size for which the scheduler found no node."""

    def __post_init__(self) -> None:
        names = [pool.name for pool in self.pools]
        if len(set(names)) < len(names):
            raise ValueError(f"A pool is named twice: {', '.join(sorted(names))}.")
        paces = (self.up_cool_down_s, self.down_cool_down_s, self.down_window_s, self.retry_s)
        if min(paces) < 0:
            raise ValueError("Cool-downs, windows and retry_s must not be negative.")
        awake = [part for pool in self.pools if pool.idle_s is None for _, part in pool.parts()]
        gpus = sum(part.min_replicas * part.gpus for part in awake)
        cost = sum(part.min_replicas * part.cost_per_hour for part in awake)
        if gpus > self.max_gpus or cost > self.max_cost_per_hour:
            raise ValueError(
                f"The smallest sizes of the pools take {gpus:g} GPUs and {cost:g} an hour; the "
                f"budgets are {self.max_gpus:g} and {self.max_cost_per_hour:g}. Lower "
                "min_replicas or raise the budgets."
            )
