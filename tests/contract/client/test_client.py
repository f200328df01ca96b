"""Both clients against a router over real gRPC."""

import asyncio
import inspect
import threading

import pytest

from understudy import (
    AnswerStream,
    AsyncAnswerStream,
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    Delta,
    Event,
    Finished,
    Model,
    ResourceExhausted,
    RetryPolicy,
    Started,
    ToolCall,
    Unauthenticated,
    Unavailable,
    UnderstudyError,
)
from understudy.api.router.v1 import router_pb2
from understudy.errors import REASONS
from understudy.testing import FakeAnswer, FakeRouter


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Delta)]


def test_an_answer_is_started_then_deltas_then_finished(face, router) -> None:
    events = face.events(prompt="Hi", timeout_s=20)
    assert isinstance(events[0], Started)
    assert texts(events) == ["Hello", ", ", "world."]
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.total_tokens == 11
    sent = router.calls[0]
    assert sent.request_id == events[0].request_id
    assert 0 < sent.time_left_s <= 20


def test_tool_calls_arrive_complete(face_type) -> None:
    call = ToolCall("c1", "book", '{"seats":4}')
    with FakeRouter(FakeAnswer(texts=(), tool_calls=(call,))) as router:
        events = face_type(router.address).events(prompt="Hi")
    assert [e.tool_calls for e in events if isinstance(e, Delta)] == [(call,)]


@pytest.mark.parametrize("error_class", REASONS.values(), ids=REASONS.keys())
def test_every_error_class_arrives_as_itself(face, router, error_class) -> None:
    router.fail_next(error_class("A sentence.", {"field": "prompt"}), times=4)
    with pytest.raises(UnderstudyError) as caught:
        face.events(prompt="Hi", timeout_s=0.9 if error_class is ResourceExhausted else 20)
    assert type(caught.value) is error_class
    assert caught.value.message == "A sentence."
    assert caught.value.metadata["field"] == "prompt"
    assert caught.value.request_id == router.calls[0].request_id


def test_an_error_in_mid_stream_arrives_as_itself(face, router) -> None:
    router.fail_next(REASONS["INTERNAL"]("internal error"), after_deltas=1)
    with pytest.raises(UnderstudyError) as caught:
        face.events(prompt="Hi")
    assert type(caught.value) is REASONS["INTERNAL"]
    assert len(router.calls) == 1


@pytest.mark.parametrize("after_deltas", [0, 1, 3])
def test_a_broken_stream_is_resumed_without_a_seam(face, router, after_deltas: int) -> None:
    router.break_next(after_deltas=after_deltas)
    events = face.events(prompt="Hi")
    assert texts(events) == ["Hello", ", ", "world."]
    assert sum(isinstance(event, Started) for event in events) == 1
    resume = router.calls[1].request
    assert isinstance(resume, router_pb2.ResumeRequest)
    assert resume.received_deltas == after_deltas


def test_a_stream_that_breaks_twice_is_resumed_twice(face, router) -> None:
    router.break_next(after_deltas=1)
    router.break_next(after_deltas=2)
    assert texts(face.events(prompt="Hi")) == ["Hello", ", ", "world."]
    assert [call.request.received_deltas for call in router.calls[1:]] == [1, 2]


def test_a_router_that_dies_in_mid_stream_and_returns_is_hidden(face_type, router) -> None:
    face = face_type(router.address, retries=RetryPolicy())
    router.hold_next(after_deltas=1)

    def restart(event: Event) -> None:
        if isinstance(event, Delta) and event.index == 0:
            router.stop()
            router.start()

    assert texts(face.events(restart, prompt="Hi")) == ["Hello", ", ", "world."]
    assert isinstance(router.calls[-1].request, router_pb2.ResumeRequest)


def test_without_a_journal_a_broken_answer_says_that_it_cannot_be_resumed(face_type) -> None:
    with FakeRouter(is_resumable=False) as router:
        router.break_next(after_deltas=1)
        with pytest.raises(Unavailable, match="cannot be resumed") as caught:
            face_type(router.address).events(prompt="Hi")
    assert caught.value.request_id == router.calls[0].request_id


def test_an_admission_refused_for_now_is_tried_again_under_one_key(face, router) -> None:
    router.fail_next(ResourceExhausted("full", retry_after_s=0.02), times=2)
    assert texts(face.events(prompt="Hi")) == ["Hello", ", ", "world."]
    assert len(router.calls) == 3
    keys = {call.request.idempotency_key for call in router.calls}
    assert len(keys) == 1
    assert keys != {""}


def test_every_request_has_an_idempotency_key_of_its_own(face, router) -> None:
    face.events(prompt="Hi")
    face.events(prompt="Hi")
    first, second = (call.request.idempotency_key for call in router.calls)
    assert first != second


def test_a_deadline_ends_a_silent_stream(face, router) -> None:
    router.hold_next(after_deltas=1)
    with pytest.raises(DeadlineExceeded) as caught:
        face.events(prompt="Hi", timeout_s=0.5)
    assert caught.value.request_id == router.calls[0].request_id
    assert router.caller_left.wait(10)


def test_leaving_the_block_early_cancels_the_request(face, router) -> None:
    router.hold_next(after_deltas=0)
    assert isinstance(face.first_event(prompt="Hi"), Started)
    assert router.caller_left.wait(10)


def test_the_api_key_travels_as_a_bearer_token(face_type) -> None:
    with FakeRouter(api_key="secret") as router:
        face_type(router.address, "secret").events(prompt="Hi")
        assert router.calls[0].authorization == "Bearer secret"
        with pytest.raises(Unauthenticated):
            face_type(router.address, "wrong").events(prompt="Hi")


def test_models_are_listed_with_auto_first(face_type) -> None:
    slm = Model("slm", "v1", 2048, 0.12)
    with FakeRouter(models=(slm,)) as router:
        router.break_next()
        listed = face_type(router.address).models()
    assert listed[0].id == "auto"
    assert listed[1] == slm


def test_nobody_listening_is_unavailable_with_the_request_id(face, router) -> None:
    router.stop()
    with pytest.raises(Unavailable) as caught:
        face.events(prompt="Hi", timeout_s=5)
    assert caught.value.request_id


def test_complete_returns_the_whole_answer(router) -> None:
    with Client(router.address) as client:
        answer = client.complete(messages=[{"role": "user", "content": "Hi"}])
    assert answer.text == "Hello, world."
    assert answer.decision.pool == "llm"


async def test_complete_returns_the_whole_answer_asynchronously(router) -> None:
    async with AsyncClient(router.address) as client:
        answer = await client.complete(messages=[{"role": "user", "content": "Hi"}])
    assert answer.text == "Hello, world."
    assert answer.request_id == router.calls[0].request_id


def test_another_thread_may_close_a_stream(router) -> None:
    router.hold_next(after_deltas=1)
    with Client(router.address) as client, client.generate(prompt="Hi") as stream:
        next(stream)
        next(stream)
        closer = threading.Timer(0.05, stream.close)
        closer.start()
        with pytest.raises(Cancelled):
            next(stream)
        closer.join()
        with pytest.raises(Cancelled, match="closed"):
            next(stream)


@pytest.mark.parametrize("closed", ["stream", "client"])
async def test_a_reader_learns_that_another_task_closed_its_stream(router, closed: str) -> None:
    router.hold_next(after_deltas=1)
    async with AsyncClient(router.address) as client:
        stream = client.generate(prompt="Hi")
        await anext(stream)
        await anext(stream)
        reading = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        await (stream if closed == "stream" else client).close()
        with pytest.raises(Cancelled, match="closed"):
            await reading


async def test_a_reader_that_is_cancelled_is_cancelled(router) -> None:
    router.hold_next(after_deltas=1)
    async with AsyncClient(router.address) as client, client.generate(prompt="Hi") as stream:
        await anext(stream)
        await anext(stream)
        reading = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


async def test_a_closed_asynchronous_stream_stays_closed(router) -> None:
    async with AsyncClient(router.address) as client, client.generate(prompt="Hi") as stream:
        await anext(stream)
        await stream.close()
        with pytest.raises(Cancelled, match="closed"):
            await anext(stream)


@pytest.mark.parametrize(
    ("blocking", "asynchronous"), [(Client, AsyncClient), (AnswerStream, AsyncAnswerStream)]
)
def test_both_clients_have_one_surface(blocking: type, asynchronous: type) -> None:
    def surface(cls: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(cls, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
        }

    assert surface(blocking) == surface(asynchronous)
