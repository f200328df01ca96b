"""HTTP connections to one engine; new authorities are asked over new connections.

An HTTP client keeps the TLS context that it was made with. Once the authorities are new, the next
request goes over a client of its own, and the former one is closed with the last of its requests.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2

from understudy.serving import Followed

Authorities = Followed[ssl.SSLContext]


@dataclass(slots=True)
class _Generation:
    """A client with one set of authorities, and how many requests use it."""

    trust: ssl.SSLContext | None
    client: httpx2.AsyncClient
    num_requests: int = 0


class Connections:
    """Connections to one engine; belongs to one event loop."""

    def __init__(
        self, url: str, timeout: httpx2.Timeout, authorities: Authorities | None = None
    ) -> None:
        """Dial nothing yet; without authorities of its own an engine is held to the system's."""
        self._url, self._timeout, self._authorities = url, timeout, authorities
        self._current = self._made(authorities.current() if authorities else None)
        self._former: list[_Generation] = []

    async def follow(self) -> None:
        """Look at the authorities: requests from here on are made under those in use."""
        if self._authorities is None:
            return
        trust = await asyncio.to_thread(self._authorities.current)
        if trust is not self._current.trust:
            self._former.append(self._current)
            self._current = self._made(trust)
            await self._close_unused()

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Mapping[str, object] | None = None,
    ) -> AsyncIterator[httpx2.Response]:
        """Send a request; yields the response, whose body is still to be read."""
        generation = self._current
        generation.num_requests += 1
        try:
            async with generation.client.stream(
                method, path, headers=dict(headers), json=body
            ) as response:
                yield response
        finally:
            generation.num_requests -= 1
            await self._close_unused()

    async def aclose(self) -> None:
        """End every request and hang up."""
        former, self._former = self._former, []
        for generation in (*former, self._current):
            await generation.client.aclose()

    async def _close_unused(self) -> None:
        unused = [former for former in self._former if not former.num_requests]
        self._former = [former for former in self._former if former.num_requests]
        for former in unused:
            await former.client.aclose()

    def _made(self, trust: ssl.SSLContext | None) -> _Generation:
        client = httpx2.AsyncClient(
            base_url=self._url,
            verify=True if trust is None else trust,
            trust_env=False,
            timeout=self._timeout,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=32),
            headers={"accept-encoding": "identity", "user-agent": "understudy-router"},
        )
        return _Generation(trust, client)
