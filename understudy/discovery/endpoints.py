"""What a discovery tells, and the one that knows its peers from the start."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """One peer."""

    address: str
    """`host:port`, or `[v6]:port`."""


Endpoints = frozenset[Endpoint]


class Discovery(Protocol):
    """Tells which peers there are, now and whenever that changes."""

    def watch(self) -> AsyncIterator[Endpoints]:
        """All peers as soon as they are known, then all of them again at each change.

        Does not end by itself; close the iterator to stop watching.
        """

    async def aclose(self) -> None:
        """Release connections; running watches end."""


class StaticDiscovery:
    """Peers that never change."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._endpoints = frozenset(Endpoint(address) for address in addresses)

    async def watch(self) -> AsyncIterator[Endpoints]:
        """The peers, once: they do not change."""
        yield self._endpoints

    async def aclose(self) -> None:
        """Nothing to release."""
