"""The journal on the control Redis: what another replica needs to continue an answer.

An entry is an append-only list of sealed records under the hash of its resume token: the request,
attempts that were refused, the path taken, every delta before the caller sees it, the end. Whoever
continues an entry becomes its owner; the earlier owner learns so at its next append. While Redis is
away requests are served without resume, and after a failure it is left alone for a moment.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.router.requests import Request
from services.router.sealing import Sealer
from understudy.errors import InvalidArgument, NotFound, Unavailable, UnderstudyError

Record = dict[str, Any]
T = TypeVar("T")

PREFIX: Final = "journal1:"
AWAY_S: Final = 1.0
"""How long Redis is left alone after a failure."""

_APPEND: Final = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return redis.call('EXISTS', KEYS[2]) - 1 end
if redis.call('LLEN', KEYS[1]) ~= tonumber(ARGV[3]) then return -1 end
for i = 4, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[i]) end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
"""
_GONE: Final = -1
_TAKEN: Final = 0

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
        self._tenant = tenant
        self._owner = owner

    async def append(self, *records: Record) -> None:
        """Write records before their effect is seen; TakenOverError when another stream owns it.

        When Redis is away or has forgotten the entry, resume is off from here on.
        """
        if not self.is_live:
            return
        try:
            outcome = await self._journal.append(
                self._tenant, self.token, self._owner, len(self.records), records
            )
        except JournalAwayError:
            self.is_live = False
            return
        if outcome == _TAKEN:
            self.is_live = False
            raise TakenOverError("The answer continues on another stream.")
        self.is_live = outcome != _GONE
        self.records.extend(records)


class Journal:
    """Opens and finds entries; `redis` None turns it off."""

    def __init__(
        self,
        redis: Redis | None,
        sealer: Sealer,
        ttl_s: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
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
        try:
            if request.idempotency_key:
                token = await self._claim(tenant, request, token)
            entry = await self._take_over(tenant, token)
            if not entry.records:
                head = {"kind": "head", "request": request.to_json(), "request_id": request_id}
                await entry.append(head)
        except JournalAwayError:
            return None
        return entry if entry.is_live else None

    async def find(self, tenant: str, token: str) -> Entry:
        """Take over the entry of a resume token; NotFound, or Unavailable while Redis is away."""
        if not await self.read(tenant, token):
            raise NotFound(
                "The resume token is not known here or has expired; send the request again.",
                {"field": "resume_token"},
            )
        return await self._take_over(tenant, token)

    async def read(self, tenant: str, token: str) -> list[Record]:
        """Return the records of an entry, without owning it."""
        place = _place(tenant, token)
        sealed = await self._call(lambda redis: redis.lrange(place, 0, -1))
        return [
            json.loads(self._sealer.open(cast("bytes", item), f"{place}:{index}"))
            for index, item in enumerate(sealed)
        ]

    async def append(
        self, tenant: str, token: str, owner: str, index: int, records: Sequence[Record]
    ) -> int:
        """Write records as their owner: 1 done, 0 taken over, -1 the entry is gone.

        An entry is gone, too, when a Redis that was restarted forgot its last records: records
        are sealed to their places, so none can follow a gap.
        """
        place = _place(tenant, token)
        sealed = [
            self._sealer.seal(_dump(record), f"{place}:{index + offset}")
            for offset, record in enumerate(records)
        ]
        keys = (place, f"{place}:owner")
        values = (owner, str(self._ttl_s), str(index), *sealed)
        outcome = await self._call(
            lambda redis: cast("Awaitable[int]", redis.eval(_APPEND, 2, *keys, *values))
        )
        return int(outcome)

    async def _take_over(self, tenant: str, token: str) -> Entry:
        owner = secrets.token_hex(16)
        place = f"{_place(tenant, token)}:owner"
        await self._call(lambda redis: redis.set(place, owner, ex=self._ttl_s))
        records = await self.read(tenant, token)
        return Entry(self, tenant, token, owner, records)

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


def connect(url: str, timeout_s: float = 0.5) -> Redis | None:
    """Return a client for a Redis URL (nothing is dialled yet); None for an empty one."""
    if not url:
        return None
    return Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)


def _place(tenant: str, token: str) -> str:
    """Where an entry lives: Redis never holds the token itself, and tenants cannot meet."""
    return PREFIX + hashlib.sha256(f"{tenant}\0{token}".encode()).hexdigest()


def _dump(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
