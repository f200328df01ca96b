"""A write in flight outlives its cancelled awaiter, and the status waits for it."""

import asyncio

import grpc
import grpc.aio
import pytest

from understudy.serving.served_context import ServedContext


class FakeContext:
    """Records what is sent; writes end when the test says so."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.sent = []
        self.trailing = ()
        self.called = []

    async def write(self, message):
        self.sent.append("begun")
        await self.gate.wait()
        if message == b"broken":
            raise grpc.aio.InternalError("the caller has gone")
        self.sent.append(message)

    async def abort(self, code, details, trailing):
        self.sent.append((code, details, trailing))
        raise grpc.aio.AbortError

    async def read(self):
        return b"message"

    async def send_initial_metadata(self, metadata):
        self.called.append(metadata)

    def trailing_metadata(self):
        return self.trailing

    def set_trailing_metadata(self, trailing):
        self.trailing = trailing

    def peer_identities(self):
        return None

    def auth_context(self):
        return {"key": (b"value",)}

    def __getattr__(self, name):
        def record(*arguments):
            self.called.append((name, *arguments))
            return name

        return record


@pytest.fixture
async def fake():
    return FakeContext()


async def begin_and_cancel(context, fake, message):
    writing = asyncio.create_task(context.write(message))
    while not fake.sent:  # noqa: ASYNC110  # one turn of the loop, until the write has begun
        await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing


async def test_status_waits_for_the_write_in_flight(fake):
    context = ServedContext(fake)
    await begin_and_cancel(context, fake, b"one")

    aborting = asyncio.create_task(context.abort(grpc.StatusCode.UNAVAILABLE, "gone", ()))
    await asyncio.sleep(0)
    assert fake.sent == ["begun"]
    fake.gate.set()
    with pytest.raises(grpc.aio.AbortError):
        await aborting

    assert fake.sent == ["begun", b"one", (grpc.StatusCode.UNAVAILABLE, "gone", ())]


async def test_failed_write_of_a_cancelled_awaiter_is_not_reported(fake, caplog):
    context = ServedContext(fake)
    await begin_and_cancel(context, fake, b"broken")

    fake.gate.set()
    await context.settle()

    assert caplog.text == ""


async def test_failed_write_is_raised_to_its_awaiter(fake):
    fake.gate.set()

    with pytest.raises(grpc.aio.InternalError):
        await ServedContext(fake).write(b"broken")


async def test_abort_with_status_object_is_the_same_abort(fake):
    class Status(grpc.Status):
        code, details, trailing_metadata = grpc.StatusCode.ABORTED, "lost", None

    with pytest.raises(grpc.aio.AbortError):
        await ServedContext(fake).abort_with_status(Status())

    assert fake.sent == [(grpc.StatusCode.ABORTED, "lost", ())]


async def test_servicers_trailing_metadata_is_added_to_the_chassis(fake):
    context = ServedContext(fake)
    fake.trailing = (("x-request-id", "req-1"),)

    context.set_trailing_metadata((("more", "x"),))

    assert context.trailing_metadata() == (("x-request-id", "req-1"), ("more", "x"))


async def test_everything_else_is_passed_on(fake):
    context = ServedContext(fake)

    assert await context.read() == b"message"
    await context.send_initial_metadata((("a", "b"),))
    context.add_done_callback(print)
    context.set_code(grpc.StatusCode.OK)
    context.set_details("x")
    context.set_compression(grpc.Compression.Gzip)
    context.disable_next_message_compression()
    told = [
        context.invocation_metadata(), context.peer(), context.time_remaining(), context.code(),
        context.details(), context.cancelled(), context.done(), context.peer_identity_key(),
    ]  # fmt: skip

    names = [
        "invocation_metadata", "peer", "time_remaining", "code",
        "details", "cancelled", "done", "peer_identity_key",
    ]  # fmt: skip
    assert told == names
    assert context.peer_identities() is None
    assert context.auth_context() == {"key": [b"value"]}
    assert fake.called[0] == (("a", "b"),)
    assert ("set_details", "x") in fake.called
