"""Shares budgets among the parts of all pools; what comes out never exceeds them.

First every part gets its smallest size, then what it has and still wants, then growth, one worker
at a time to whoever has the smallest share of what it wants. So a pool is not torn down to feed
another, and attention and experts of a pool grow together. Growth only takes GPUs that nobody
holds: pods that drain or start count until they are gone.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

SLACK: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Claim:
    """One part's claim on the budgets, in order of importance."""

    floor: int
    """Replicas it must have."""
    wanted: int
    """Replicas it would like, at least the floor."""
    desired: int
    """Replicas its workload asks for now."""
    live: int
    """Pods that exist or may be created at any moment, those that drain left out."""
    leaving: int
    """Pods that drain: whatever is granted comes beside them."""
    gpus: float
    cost_per_hour: float


@dataclass(slots=True)
class _Ledger:
    """Running sums of one budget."""

    limit: float
    price: Callable[[Claim], float]
    granted: float = 0.0
    """Price of what was granted."""
    occupied: float = 0.0
    """Price of what was granted or still exists, whichever is more."""

    def allows(self, claim: Claim, size: int) -> bool:
        """Whether one more worker than `size` fits."""
        price = self.price(claim)
        if price == 0:
            return True
        if self.granted + price > self.limit + SLACK:
            return False
        return size < claim.live or self.occupied + price <= self.limit + SLACK

    def take(self, claim: Claim, size: int) -> None:
        """Book one more worker than `size`."""
        price = self.price(claim)
        self.granted += price
        if size >= claim.live:
            self.occupied += price


def share(claims: Sequence[Claim], max_gpus: float, max_cost_per_hour: float) -> list[int]:
    """Return the replicas of each claim; their sum never exceeds the budgets."""
    ledgers = (
        _Ledger(max_gpus, lambda claim: claim.gpus),
        _Ledger(max_cost_per_hour, lambda claim: claim.cost_per_hour),
    )
    for ledger in ledgers:
        ledger.occupied = sum(
            ledger.price(claim) * (claim.live + claim.leaving) for claim in claims
        )
    sizes = [0] * len(claims)
    _fill(claims, sizes, [claim.floor for claim in claims], ledgers)
    kept = [max(claim.floor, min(claim.wanted, claim.desired)) for claim in claims]
    _fill(claims, sizes, kept, ledgers)
    _fill(claims, sizes, [claim.wanted for claim in claims], ledgers)
    return sizes


def _fill(
    claims: Sequence[Claim], sizes: list[int], goals: Sequence[int], ledgers: Sequence[_Ledger]
) -> None:
    """Grant workers one at a time, the smallest share first, until goals or budgets are reached."""
    waiting = [
        (sizes[index] / goals[index], index)
        for index in range(len(claims))
        if sizes[index] < goals[index]
    ]
    heapq.heapify(waiting)
    while waiting:
        _, index = heapq.heappop(waiting)
        claim = claims[index]
        if not all(ledger.allows(claim, sizes[index]) for ledger in ledgers):
            continue  # what does not fit now fits no later: sums only grow
        for ledger in ledgers:
            ledger.take(claim, sizes[index])
        sizes[index] += 1
        if sizes[index] < goals[index]:
            heapq.heappush(waiting, (sizes[index] / goals[index], index))
