"""Leader election over a Lease: one controller acts, the others watch.

Times of other machines are never compared with ours: a lease is free once its record has not
changed for its duration on our own monotonic clock. A leader that cannot renew steps down before
anybody else may take over.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from services.controller.cluster import Conflict, LeaseRecord, Leases
from understudy.errors import NotFound, Unavailable, UnderstudyError

DURATION_S: Final = 15
"""A lease that was not renewed for so long is free."""
DEADLINE_S: Final = 10.0
"""A leader that has not renewed for so long no longer acts."""
RENEW_S: Final = 3.0
log = logging.getLogger(__name__)


class Leadership:
    """Whether this process leads."""

    def __init__(
        self,
        leases: Leases,
        name: str,
        identity: str,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._name = name
        self._identity = identity
        self._clock_s = clock_s
        self._renewed_s = float("-inf")
        self._seen: LeaseRecord | None = None
        self._seen_s = clock_s()

    @property
    def is_leading(self) -> bool:
        """Whether this process may act now."""
        return self._clock_s() - self._renewed_s < DEADLINE_S

    async def run(self) -> None:
        """Campaign and renew until cancelled; gives the lease back then."""
        try:
            while True:
                await self.campaign()
                await asyncio.sleep(RENEW_S)
        finally:
            await self._give_back()

    async def campaign(self) -> None:
        """Look at the lease once: take it when it is free, renew it when it is ours."""
        was_leading, started_s = self.is_leading, self._clock_s()
        try:
            if await self._claim():
                self._renewed_s = started_s
        except Conflict:
            self._renewed_s = float("-inf")
        except (NotFound, Unavailable) as error:
            log.warning("The lease cannot be reached: %s", error.message)
        if self.is_leading != was_leading:
            log.info("Leads now." if self.is_leading else "Leads no longer.",
                     extra={"identity": self._identity})  # fmt: skip

    async def _claim(self) -> bool:
        found = await self._leases.read(self._name)
        if found is None:
            await self._leases.create(self._name, self._identity, DURATION_S)
            return True
        if found != self._seen:
            self._seen, self._seen_s = found, self._clock_s()
        if found.holder == self._identity:
            await self._leases.replace(self._name, found, DURATION_S)
            return True
        if found.holder and self._clock_s() - self._seen_s < DURATION_S:
            self._renewed_s = float("-inf")
            return False
        ours = replace(found, holder=self._identity, transitions=found.transitions + 1)
        await self._leases.replace(self._name, ours, DURATION_S)
        return True

    async def _give_back(self) -> None:
        if not self.is_leading:
            return
        self._renewed_s = float("-inf")
        try:
            found = await self._leases.read(self._name)
            if found is not None and found.holder == self._identity:
                await self._leases.replace(self._name, replace(found, holder=""), DURATION_S)
        except UnderstudyError as error:
            log.info("The lease was not given back and expires: %s", error.message)
