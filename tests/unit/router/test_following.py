"""Streams that follow an answer ride over hiccups of the journal, and go on where it stays away."""

from __future__ import annotations

from typing import cast

import pytest

from services.router import following
from services.router.answers import Delta
from services.router.following import Following
from services.router.journal import Entry, JournalAwayError, Record
from services.router.records import delta_record, lost_record
from services.router.requests import Request
from understudy.errors import Aborted, DeadlineExceeded
from understudy.rpc import Deadline

HEAD: Record = {"kind": "head", "request": Request(prompt="x").to_json(), "request_id": "r"}


class FakeEntry:
    """Looks as it is told: an error, or (whose turn it is, new records)."""

    def __init__(self, *looks: JournalAwayError | tuple[bool, list[Record]]) -> None:
        self.records = [HEAD, delta_record(Delta(0, "a"), [1])]
        self._looks = iter(looks)

    async def look(self) -> bool:
        look = next(self._looks)
        if isinstance(look, JournalAwayError):
            raise look
        self.records.extend(look[1])
        return look[0]


AWAY = JournalAwayError("away")
NEWS = [delta_record(Delta(1, "b"), [2])]


async def test_a_hiccup_is_ridden_over_and_nothing_is_told_twice() -> None:
    entry = FakeEntry((False, []), AWAY, AWAY, (False, NEWS), AWAY, (True, []))
    stream = Following(cast("Entry", entry), Deadline.after(10))
    assert [event async for event in stream.events()] == [Delta(1, "b")]
    assert stream.found.token_ids == [1, 2]


async def test_a_stream_goes_on_without_a_journal_that_stays_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "LEASE_S", -1.0)
    stream = Following(cast("Entry", FakeEntry(AWAY)), Deadline.after(10))
    assert [event async for event in stream.events()] == []
    assert stream.found.finished is None


async def test_a_follower_ends_with_its_deadline() -> None:
    stream = Following(cast("Entry", FakeEntry()), Deadline.after(0))
    with pytest.raises(DeadlineExceeded):
        await anext(stream.events())


async def test_a_lost_answer_that_began_anew_is_not_mixed_into_the_old_one() -> None:
    anew = [lost_record(), delta_record(Delta(0, "x"), []), delta_record(Delta(1, "y"), [])]
    stream = Following(cast("Entry", FakeEntry((False, anew))), Deadline.after(10))
    with pytest.raises(Aborted, match="send the request again"):
        await anext(stream.events())
    assert [delta.text for delta in stream.found.deltas] == ["x", "y"]
