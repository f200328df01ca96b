"""Metrics of pods as windows: what counters grew by between two readings of the same pod."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.controller.scaling.signals import AttentionLoad, ExpertsLoad

Labels = frozenset[tuple[str, str]]
Series = Mapping[tuple[str, Labels], float]
"""Values by name and labels."""


@dataclass(frozen=True, slots=True)
class Info:
    """What an attention worker says of itself now."""

    running: int
    waiting: int
    kv_occupancy: float


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a pod's metrics."""

    at_s: float
    series: Series


@dataclass(frozen=True, slots=True)
class Window:
    """What a pod's counters grew by."""

    length_s: float
    grown: Series

    def total(self, name: str, **labels: str) -> float:
        """Return the growth of all series of a name that carry these labels."""
        wanted = labels.items()
        return sum(
            value
            for (found, carried), value in self.grown.items()
            if found == name and wanted <= carried
        )


def window(before: Reading, after: Reading) -> Window:
    """Return what grew; a counter that fell was started anew."""
    grown = {
        key: value - old if value >= (old := before.series.get(key, 0.0)) else value
        for key, value in after.series.items()
    }
    return Window(max(after.at_s - before.at_s, 0.0), grown)


def attention_load(windows: Sequence[Window], infos: Sequence[Info]) -> AttentionLoad | None:
    """Return the load of the workers that gave both; None without any."""
    if not windows or not infos:
        return None
    return AttentionLoad(
        window_s=_mean_length(windows),
        running=sum(info.running for info in infos),
        waiting=sum(info.waiting for info in infos),
        kv_occupancy=sum(info.kv_occupancy for info in infos) / len(infos),
        steps=_sum(windows, "understudy_attention_step_seconds_count"),
        step_s=_sum(windows, "understudy_attention_step_seconds_sum"),
        prefill_tokens=_sum(windows, "understudy_attention_computed_tokens_total", phase="prefill"),
        decode_tokens=_sum(windows, "understudy_attention_computed_tokens_total", phase="decode"),
        ended=_sum(windows, "understudy_attention_ended_sequences_total"),
    )


def experts_load(windows: Sequence[Window]) -> ExpertsLoad | None:
    """Return the load of expert workers; None without any."""
    if not windows:
        return None
    return ExpertsLoad(
        window_s=_mean_length(windows),
        frames=_sum(windows, "understudy_experts_compute_seconds_count"),
        rows=_sum(windows, "understudy_experts_rows_total"),
        compute_s=_sum(windows, "understudy_experts_compute_seconds_sum"),
        queue_wait_s=_sum(windows, "understudy_experts_queue_wait_seconds_sum"),
    )


def quantile(
    windows: Iterable[Window], histogram: str, share: float, **labels: str
) -> float | None:
    """Return a quantile of a histogram over windows, by linear interpolation in its bucket.

    None without observations; the last finite bound when it lies beyond.
    """
    buckets: dict[float, float] = {}
    wanted = labels.items()
    for one in windows:
        for (name, carried), value in one.grown.items():
            if name == f"{histogram}_bucket" and wanted <= carried:
                bound = float(dict(carried)["le"])
                buckets[bound] = buckets.get(bound, 0.0) + value
    ordered = sorted(buckets.items())
    if not ordered or ordered[-1][1] <= 0:
        return None
    goal, low, below = share * ordered[-1][1], 0.0, 0.0
    for bound, count in ordered:
        if count >= goal:
            if bound == float("inf"):
                return low
            inside = count - below
            return low + (bound - low) * ((goal - below) / inside if inside else 1.0)
        low, below = bound, count
    return low


def _mean_length(windows: Sequence[Window]) -> float:
    return sum(one.length_s for one in windows) / len(windows)


def _sum(windows: Sequence[Window], name: str, **labels: str) -> float:
    return sum(one.total(name, **labels) for one in windows)
