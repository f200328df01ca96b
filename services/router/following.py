"""Follows an answer that another stream continues, and takes it over where that stream is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Final

from services.router.answers import Delta, Finished
from services.router.journal import LEASE_S, Entry, JournalAwayError
from services.router.records import Replay, extend, replay
from understudy.errors import Aborted
from understudy.rpc import Deadline

_POLL_S: Final = 0.05


class Following:
    """One stream that lost its answer; iterate `events`, then continue from `found`.

    It tells what the owner writes. Where the owner is gone, the entry is this stream's again;
    where the journal stays away longer than a lease, the stream goes on without it.
    """

    def __init__(self, entry: Entry, deadline: Deadline) -> None:
        self.found: Replay = replay(entry.records)
        self._entry = entry
        self._deadline = deadline
        self._away_since_s: float | None = None

    async def events(self) -> AsyncGenerator[Delta | Finished, None]:
        """Yield news until the answer ended or is this stream's to continue."""
        while True:
            self._deadline.check()
            num_known, num_told = len(self._entry.records), len(self.found.deltas)
            is_ours = await self._look()
            extend(self.found, self._entry.records[num_known:])
            if len(self.found.deltas) < num_told:
                raise Aborted(
                    "The engine of this answer broke off and cannot continue it; send the "
                    "request again."
                )
            for delta in self.found.deltas[num_told:]:
                yield delta
            if self.found.finished is not None:
                yield self.found.finished
                return
            if is_ours:
                return
            await asyncio.sleep(min(_POLL_S, self._deadline.remaining_s))

    async def _look(self) -> bool:
        try:
            is_ours = await self._entry.look()
        except JournalAwayError:
            now_s = time.monotonic()
            self._away_since_s = self._away_since_s or now_s
            return now_s - self._away_since_s > LEASE_S
        self._away_since_s = None
        return is_ours
