"""Placement as a pure function: what replicas say of themselves in, the table out."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolMembers:
    """A pool and the addresses of its expert workers, in the order of the settings."""

    pool: str
    replicas: tuple[str, ...]
    """Known from the start; none where they are discovered."""
    discovery: str = ""
    """Where they are discovered, as `k8s:namespace/service:port`; empty where they are known."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What a healthy expert worker said that it holds."""

    address: str
    digest: bytes
    layers: range
    expert_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """A replica's place in the table."""

    holding: Holding
    preferred_expert_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """The placement of a pool as of an epoch."""

    pool: str
    epoch: int
    shares: tuple[Share, ...]


def place(holdings: Sequence[Holding]) -> tuple[Share, ...]:
    """Divide the experts among the replicas that hold them, in ranges as equal as they come.

    Replicas of the same layers share the preference for the experts of those layers: n replicas
    that hold all of E experts are preferred for E/n consecutive ones each, so that all work at
    once and each can stand in for the others. Replicas of another model than the first are left
    out: a sum of two models is no sum.
    """
    if not holdings:
        return ()
    members = [holding for holding in holdings if holding.digest == holdings[0].digest]
    preferred: dict[str, list[int]] = defaultdict(list)
    for layers in dict.fromkeys(holding.layers for holding in members):
        group = [holding for holding in members if holding.layers == layers]
        for expert_id, address in _divide(group).items():
            preferred[address].append(expert_id)
    return tuple(Share(holding, tuple(preferred[holding.address])) for holding in members)


def outsiders(holdings: Sequence[Holding]) -> list[str]:
    """Return the addresses that `place` leaves out because their model is another."""
    return [holding.address for holding in holdings if holding.digest != holdings[0].digest]


def next_epoch(previous: int, now_ms: int) -> int:
    """Return an epoch above `previous` that also exceeds those of a controller before this one.

    Epochs follow the clock because a restarted controller remembers none, and expert workers
    refuse whatever is older than the newest epoch they have seen.
    """
    return max(previous + 1, now_ms)


def _divide(group: Sequence[Holding]) -> dict[int, str]:
    ids = sorted({expert_id for holding in group for expert_id in holding.expert_ids})
    divided: dict[int, str] = {}
    for index, expert_id in enumerate(ids):
        holders = [holding.address for holding in group if expert_id in holding.expert_ids]
        divided[expert_id] = holders[index * len(holders) // len(ids)]
    return divided
