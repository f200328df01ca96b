"""Sessions with attention workers: what is on them is what the worker was told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from services.router.clients.attention import Session, WorkerClient
from services.router.pools import Submission
from services.router.requests import Sampling
from understudy.api.attention.v1 import attention_pb2
from understudy.errors import Unavailable
from understudy.testing.fake_attention import FakeAttention
from understudy.testing.tiny_tokenizer import tiny_tokenizer

SUBMISSION = Submission(
    tokens=(1, 2, 3),
    num_committed=0,
    sampling=Sampling(),
    max_tokens=4,
    grammar=None,
    adapter="",
    time_left_s=10.0,
    kv_root=b"",
    tenant="t",
    traceparent="",
    priority="standard",
)
TO_SUBMIT = "services.router.clients.attention.to_submit"


class FakeCall:
    """A stream whose responses a test sends."""

    def __init__(self) -> None:
        self.responses: asyncio.Queue[attention_pb2.SessionResponse] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[attention_pb2.SessionResponse]:
        while True:
            yield await self.responses.get()

    def cancel(self) -> None:
        pass


class FakeStub:
    def __init__(self) -> None:
        self.call = FakeCall()

    def Session(self, _: object) -> FakeCall:  # noqa: N802
        return self.call


@asynccontextmanager
async def running(worker: FakeAttention) -> AsyncIterator[str]:
    yield await worker.start()
    await worker.stop()


def told(sequence_id: int, _: object) -> attention_pb2.Submit:
    return attention_pb2.Submit(sequence_id=sequence_id)


def untold(*_: object) -> attention_pb2.Submit:
    raise ValueError("Value out of range: 5000000000")


async def test_a_submission_that_cannot_be_told_leaves_no_phantom_on_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Session(cast("Any", FakeStub()))
    monkeypatch.setattr(TO_SUBMIT, untold)
    with pytest.raises(ValueError, match="out of range"):
        session.submit(SUBMISSION)
    assert session.num_active == 0
    monkeypatch.setattr(TO_SUBMIT, told)
    session.submit(SUBMISSION)
    assert session.num_active == 1
    await session.aclose()
    assert session.num_active == 0


async def test_a_prompt_is_unread_until_its_first_token_or_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TO_SUBMIT, told)
    stub = FakeStub()
    session = Session(cast("Any", stub))
    first, second = (session.submit(replace(SUBMISSION, unread_tokens=n)) for n in (100, 30))
    assert session.unread_tokens == 130
    tokens = attention_pb2.SequenceTokens(sequence_id=1, token_ids=[5])
    stub.call.responses.put_nowait(attention_pb2.SessionResponse(tokens=[tokens]))
    async with asyncio.timeout(10):
        await anext(aiter(first))
    assert session.unread_tokens == 30
    second.cancel()
    assert session.unread_tokens == 0
    await session.aclose()


async def test_a_session_that_is_closed_before_it_was_read_ends_its_sequences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TO_SUBMIT, told)
    session = Session(cast("Any", FakeStub()))
    sequence = session.submit(SUBMISSION)
    await session.aclose()
    with pytest.raises(Unavailable):
        await anext(aiter(sequence))


async def test_a_worker_with_another_vocabulary_gets_no_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, words = asyncio.Event(), []
    monkeypatch.setattr(
        "services.router.clients.attention.logger.error",
        lambda *said, **_: (words.extend(said), told.set()),
    )
    async with running(FakeAttention(tiny_tokenizer())) as address:
        worker = WorkerClient(address, vocabulary_digest=bytes(32))
        watching = asyncio.create_task(worker.watch())
        async with asyncio.timeout(20):
            await told.wait()
        assert "another tokenizer" in words[0]
        assert worker.info is None
        watching.cancel()
        await asyncio.wait([watching])
        await worker.aclose()


async def test_a_session_is_idle_once_its_last_sequence_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TO_SUBMIT, told)
    stub = FakeStub()
    session = Session(cast("Any", stub))
    await session.wait_idle()
    session.submit(SUBMISSION)
    session.submit(SUBMISSION).cancel()
    waiting = asyncio.create_task(session.wait_idle())
    finished = attention_pb2.SequenceFinished(sequence_id=1)
    stub.call.responses.put_nowait(attention_pb2.SessionResponse(step=1))
    await asyncio.sleep(0)
    assert not waiting.done()
    stub.call.responses.put_nowait(attention_pb2.SessionResponse(finished=[finished]))
    async with asyncio.timeout(10):
        await waiting
    assert session.num_active == 0
    await session.aclose()
