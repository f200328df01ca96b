"""The journal on the control Redis: what another replica needs to continue an answer.

An entry is an append-only list of sealed records under the hash of its resume token: the request,
attempts that were refused, the path taken, every delta before the caller sees it, the end. Whoever
continues an entry becomes its owner; the earlier owner learns so at its next append. Ownership is
a lease: where it lapses or is given up, a stream that follows the entry may take it. While Redis
is away requests are served without resume, and after a failure it is left alone for a moment.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import RedisError

from services.router import scripts
from services.router.requests import Request
from services.router.sealing import Sealer
from understudy.errors import InvalidArgument, NotFound, Unavailable, UnderstudyError

Record = dict[str, Any]
T = TypeVar("T")

PREFIX: Final = "journal1:"
AWAY_S: Final = 1.0
"""How long Redis is left alone after a failure."""
LEASE_S: Final = 3.0
"""How long an entry stays its owner's without a sign of life."""
_RENEWALS: Final = 3
"""Renewals in the time of a lease."""

logger = logging.getLogger(__name__)


class TakenOverError(UnderstudyError):
    """Another stream continues this answer; follow it in the journal."""

    code = "ABORTED"
    reason = "ANSWER_TAKEN_OVER"


class JournalAwayError(Unavailable):
    """The control Redis does not answer."""


class Entry:
    """One answer in the journal, written by its owner."""

    def __init__(
        self, journal: Journal, tenant: str, token: str, owner: str, records: Sequence[Record]
    ) -> None:
        self.token = token
        self.records = list(records)
        self.is_live = True
        self._journal = journal
        self._place = _place(tenant, token)
        self._owner = owner

    async def append(self, *records: Record) -> None:
        """Write records before their effect is seen; TakenOverError when another stream owns it.

        When Redis is away or has forgotten the entry, resume is off from here on.
        """
        if not self.is_live:
            return
        try:
            outcome = await self._journal.append(
                self._place, self._owner, len(self.records), records
            )
        except JournalAwayError:
            self.is_live = False
            return
        if outcome == scripts.TAKEN:
            self.is_live = False
            raise TakenOverError("The answer continues on another stream.")
        self.is_live = outcome == scripts.DONE
        self.records.extend(records)

    async def look(self) -> bool:
        """Read what another owner wrote since; return whether it is this stream's turn.

        It is where the owner's lease has lapsed or was given up, and, without the journal, where
        the entry is gone. Raises JournalAwayError.
        """
        outcome, news = await self._journal.look(self._place, self._owner, len(self.records))
        self.records.extend(news)
        self.is_live = outcome == scripts.DONE
        return outcome != scripts.TAKEN

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Renew the ownership while the block runs, and give it up at its end."""
        renewing = asyncio.create_task(self._renew())
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            if self.is_live:
                await self._journal.release(self._place, self._owner)

    async def _renew(self) -> None:
        while self.is_live:
            await asyncio.sleep(self._journal.lease_s / _RENEWALS)
            await self._journal.renew(self._place, self._owner)


class Journal:
    """Opens and finds entries; `redis` None turns it off."""

    def __init__(
        self,
        redis: Redis | None,
        sealer: Sealer,
        ttl_s: int,
        clock: Callable[[], float] = time.monotonic,
        lease_s: float = LEASE_S,
    ) -> None:
        self.lease_s = lease_s
        self._redis = redis
        self._sealer = sealer
        self._ttl_s = ttl_s
        self._clock = clock
        self._away_until = 0.0

    async def run(self) -> None:
        """Hold the connections to Redis until cancelled, after the last answer."""
        try:
            await asyncio.Event().wait()
        finally:
            if self._redis is not None:
                await self._redis.aclose()

    async def open(self, tenant: str, request: Request, request_id: str) -> Entry | None:
        """Begin an entry, or take over the one that the idempotency key names; None while away.

        Raises InvalidArgument when the key was used for another request.
        """
        token = secrets.token_urlsafe(32)
        head = {"kind": "head", "request": request.to_json(), "request_id": request_id}
        try:
            if request.idempotency_key:
                token = await self._claim(tenant, request, token)
            return await self._take(tenant, token, head)
        except JournalAwayError:
            return None

    async def find(self, tenant: str, token: str) -> Entry:
        """Take over the entry of a resume token; NotFound, or Unavailable while Redis is away."""
        entry = await self._take(tenant, token, None)
        if not entry.records:
            raise NotFound(
                "The resume token is not known here or has expired; send the request again.",
                {"field": "resume_token"},
            )
        return entry

    async def append(
        self, place: str, owner: str, num_known: int, records: Sequence[Record]
    ) -> int:
        """Write records as their owner; return an outcome of `scripts`."""
        sealed = [
            self._sealer.seal(_dump(record), f"{place}:{num_known + offset}")
            for offset, record in enumerate(records)
        ]
        return int(
            await self._eval(scripts.APPEND, place, owner, *self._times(), str(num_known), *sealed)
        )

    async def look(self, place: str, owner: str, num_known: int) -> tuple[int, list[Record]]:
        """Return an outcome of `scripts`, and the records from `num_known` on."""
        outcome, sealed = await self._eval(
            scripts.LOOK, place, owner, self._times()[0], str(num_known)
        )
        return int(outcome), self._open(place, sealed, num_known)

    async def release(self, place: str, owner: str) -> None:
        """Give up an entry; one that cannot be told lapses by itself."""
        with suppress(JournalAwayError):
            await self._eval(scripts.RELEASE, place, owner)

    async def renew(self, place: str, owner: str) -> None:
        """Hold an entry for another lease, if it is still its owner's."""
        with suppress(JournalAwayError):
            await self._eval(scripts.RENEW, place, owner, self._times()[0])

    async def _take(self, tenant: str, token: str, head: Record | None) -> Entry:
        """Own an entry from here on, begun with this head where there is none."""
        place, owner = _place(tenant, token), secrets.token_hex(16)
        first = self._sealer.seal(_dump(head), f"{place}:0") if head is not None else b""
        sealed = await self._eval(scripts.TAKE, place, owner, *self._times(), first)
        return Entry(self, tenant, token, owner, self._open(place, sealed, 0))

    def _times(self) -> tuple[str, str]:
        return str(int(1000 * self.lease_s)), str(self._ttl_s)

    def _open(self, place: str, sealed: Sequence[bytes], first: int) -> list[Record]:
        return [
            json.loads(self._sealer.open(item, f"{place}:{index}"))
            for index, item in enumerate(sealed, first)
        ]

    async def _eval(self, script: str, place: str, *arguments: str | bytes) -> Any:
        return await self._call(
            lambda redis: redis.eval(script, 2, place, f"{place}:owner", *arguments)
        )

    async def _claim(self, tenant: str, request: Request, token: str) -> str:
        """Bind the idempotency key to a token; return the token it is bound to."""
        digest = hashlib.sha256(f"{tenant}\0{request.idempotency_key}".encode()).hexdigest()
        place = f"{PREFIX}key:{digest}"
        claim = self._sealer.seal(_dump({"token": token, "request": request.digest()}), place)
        found = await self._call(
            lambda redis: redis.set(place, claim, ex=self._ttl_s, nx=True, get=True)
        )
        if found is None:
            return token
        bound = json.loads(self._sealer.open(cast("bytes", found), place))
        if bound["request"] != request.digest():
            raise InvalidArgument(
                "The idempotency key was used for another request; use a new key.",
                {"field": "idempotency_key"},
            )
        return str(bound["token"])

    async def _call(self, command: Callable[[Redis], Awaitable[T]]) -> T:
        if self._redis is None or self._clock() < self._away_until:
            raise JournalAwayError("The journal is away; send the request again.")
        try:
            return await command(self._redis)
        except (RedisError, OSError, TimeoutError) as error:
            self._away_until = self._clock() + AWAY_S
            logger.warning(
                "The control Redis does not answer; requests are served without resume.",
                extra={"cause": type(error).__name__},
            )
            raise JournalAwayError("The journal is away; send the request again.") from error


def connect(url: str, timeout_s: float = 0.5, *, authority: Path | None = None) -> Redis | None:
    """Return a client for a Redis URL (nothing is dialled yet); None for an empty one.

    `authority` is a PEM file with who may have signed the server's certificate, for `rediss://`.
    """
    if not url:
        return None
    trusted = {"ssl_ca_certs": str(authority)} if authority else {}
    pool = ConnectionPool.from_url(
        url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, **trusted
    )
    return Redis.from_pool(pool)


def _place(tenant: str, token: str) -> str:
    """Where an entry lives: Redis never holds the token itself, and tenants cannot meet."""
    return PREFIX + hashlib.sha256(f"{tenant}\0{token}".encode()).hexdigest()


def _dump(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
