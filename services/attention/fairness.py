"""Fairness between tenants by served tokens: virtual token counters (VTC, arXiv 2401.00588).

Each tenant has a counter of what it was served, and the tenant with the smallest counter is next.
A tenant that comes back starts no lower than the least counter of those present (or where the last
one present stood when it left), so idleness earns no credit. Of two tenants that always want more,
neither gets ahead by more than one prompt plus what runs at once.
"""

from collections import OrderedDict
from typing import Final

PREFILL_WEIGHT: Final = 1
DECODE_WEIGHT: Final = 2
MAX_ABSENT: Final = 1024
"""Absent tenants whose counters are remembered; beyond it the longest absent is forgotten."""


class TenantCounters:
    """Served tokens of the tenants of one priority class, prompt and output weighted."""

    def __init__(self, max_absent: int = MAX_ABSENT) -> None:
        self._max_absent = max_absent
        self._served: dict[str, int] = {}
        self._num_live: dict[str, int] = {}
        self._absent: OrderedDict[str, int] = OrderedDict()
        self._level = 0

    @property
    def num_present(self) -> int:
        """Tenants with a live sequence."""
        return len(self._served)

    def arrive(self, tenant: str) -> None:
        """Count a live sequence of a tenant."""
        if tenant not in self._served:
            level = min(self._served.values(), default=self._level)
            self._served[tenant] = max(self._absent.pop(tenant, 0), level)
        self._num_live[tenant] = self._num_live.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        """Count a live sequence less; with its last one the tenant is absent."""
        self._num_live[tenant] -= 1
        if self._num_live[tenant]:
            return
        del self._num_live[tenant]
        served = self._served.pop(tenant)
        self._absent[tenant] = served
        if len(self._absent) > self._max_absent:
            self._absent.popitem(last=False)
        if not self._served:
            self._level = served

    def charge(self, tenant: str, weighted_tokens: int) -> None:
        """Add to what a present tenant was served."""
        self._served[tenant] += weighted_tokens

    def served(self, tenant: str) -> int:
        """Return the counter of a present tenant."""
        return self._served[tenant]
