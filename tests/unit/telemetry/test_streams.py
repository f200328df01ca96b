"""A stream's span ends exactly once, whatever becomes of the stream."""

import asyncio
import gc

import pytest
from opentelemetry.trace import StatusCode

from understudy.telemetry import SpanStream, names, remote_context


async def numbers(count, closed=None):
    try:
        for number in range(count):
            yield number
    finally:
        if closed is not None:
            closed.set()


async def never():
    yield 0
    await asyncio.Event().wait()


def outcome(span):
    return span.attributes[names.STREAM_OUTCOME]


async def test_stream_read_to_its_end_is_finished(recorder):
    stream = SpanStream(recorder.tracer, "tokens", numbers(3), attributes={names.POOL: "slm"})

    assert [number async for number in stream] == [0, 1, 2]

    (span,) = recorder.spans
    assert span.name == "tokens"
    assert outcome(span) == "finished"
    assert span.attributes[names.STREAM_MESSAGES] == 3
    assert span.attributes[names.STREAM_FIRST_MESSAGE_S] >= 0
    assert span.attributes[names.POOL] == "slm"
    assert span.status.status_code is StatusCode.UNSET


async def test_failed_stream_is_an_error_with_its_type(recorder):
    async def broken():
        yield 0
        raise ConnectionError("the worker died")

    with pytest.raises(ConnectionError):
        async for _ in SpanStream(recorder.tracer, "tokens", broken()):
            pass

    (span,) = recorder.spans
    assert outcome(span) == "failed"
    assert span.attributes[names.ERROR_TYPE] == "ConnectionError"
    assert span.status.status_code is StatusCode.ERROR


async def test_cancelled_reader_ends_the_span(recorder):
    stream = SpanStream(recorder.tracer, "tokens", never())
    first = asyncio.Event()

    async def read():
        async for _ in stream:
            first.set()

    reading = asyncio.create_task(read())
    await first.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    (span,) = recorder.spans
    assert outcome(span) == "cancelled"
    assert span.attributes[names.ERROR_TYPE] == "CancelledError"


async def test_stream_left_early_is_cancelled_and_closed(recorder):
    closed = asyncio.Event()

    async with SpanStream(recorder.tracer, "tokens", numbers(9, closed)) as stream:
        async for _ in stream:
            break

    assert closed.is_set()
    assert [outcome(span) for span in recorder.spans] == ["cancelled"]


async def test_never_iterated_stream_ends_when_dropped(recorder):
    stream = SpanStream(recorder.tracer, "tokens", numbers(3))
    assert recorder.spans == ()

    del stream
    gc.collect()

    (span,) = recorder.spans
    assert outcome(span) == "dropped"
    assert span.attributes[names.STREAM_MESSAGES] == 0


async def test_half_read_stream_ends_when_dropped(recorder):
    stream = SpanStream(recorder.tracer, "tokens", numbers(3))
    await anext(stream)

    del stream
    gc.collect()

    (span,) = recorder.spans
    assert outcome(span) == "dropped"
    assert span.attributes[names.STREAM_MESSAGES] == 1


async def test_span_ends_once_however_often_the_stream_is_closed(recorder):
    async with SpanStream(recorder.tracer, "tokens", numbers(1)) as stream:
        assert [number async for number in stream] == [0]
        await stream.aclose()
    del stream
    gc.collect()

    assert [outcome(span) for span in recorder.spans] == ["finished"]


async def test_error_in_the_reader_marks_the_span(recorder):
    with pytest.raises(ValueError, match="reader"):
        async with SpanStream(recorder.tracer, "tokens", numbers(3)) as stream:
            async for _ in stream:
                raise ValueError("the reader gave up")

    assert [outcome(span) for span in recorder.spans] == ["failed"]


async def test_call_like_stream_is_cancelled_on_close(recorder):
    class Call:
        cancelled = False

        def __aiter__(self):
            return numbers(5)

        def cancel(self):
            self.cancelled = True
            return True

    call = Call()
    async with SpanStream(recorder.tracer, "tokens", call) as stream:
        await anext(stream)

    assert call.cancelled


async def test_span_is_a_child_of_the_remote_parent_and_parent_of_its_children(recorder):
    remote = remote_context("00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    stream = SpanStream(recorder.tracer, "tokens", numbers(1), parent=remote)
    stream.set_attributes({names.COST: 1.5})
    recorder.tracer.start_span("child", context=stream.context).end()
    await stream.aclose()

    child, parent = recorder.spans
    assert f"{parent.context.trace_id:032x}" == "a" * 32
    assert f"{parent.parent.span_id:016x}" == "b" * 16
    assert child.parent.span_id == parent.context.span_id
    assert parent.attributes[names.COST] == 1.5


def test_malformed_traceparent_gives_an_empty_context():
    assert not remote_context("")
    assert not remote_context("garbage")
