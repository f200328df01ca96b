"""The context a servicer sees: grpcio's own, with writes that a cancelled task leaves whole.

A write in flight cannot be withdrawn, and while it is in flight no status can be sent: a call that
is interrupted in the middle of one would hang its caller. So a write goes on after its awaiter was
cancelled, and the status waits for it.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import grpc
import grpc.aio

if TYPE_CHECKING:
    _Context = grpc.aio.ServicerContext[object, object]
    _Metadata = grpc.aio.Metadata | Sequence[tuple[str, str | bytes]]
    _Pairs = tuple[tuple[str, str | bytes], ...]
    _OnDone = grpc.aio.DoneCallback[object, object]
else:  # grpcio's own class is not generic
    _Context = grpc.aio.ServicerContext


class ServedContext(_Context):
    """Delegates to grpcio's context; one write at a time, as gRPC has it."""

    def __init__(self, context: "_Context") -> None:
        self._context = context
        self._writing: asyncio.Future[None] | None = None

    async def write(self, message: object) -> None:
        """Send a message; when cancelled meanwhile, the message is still sent."""
        self._writing = asyncio.ensure_future(self._context.write(message))
        self._writing.add_done_callback(_retrieved)
        await asyncio.shield(self._writing)

    async def settle(self) -> None:
        """Wait until no write is in flight, whatever became of it."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: "_Metadata" = (),
    ) -> NoReturn:
        """End the call with a status once no write is in flight; raises, always."""
        await self.settle()
        await self._context.abort(code, details, trailing_metadata)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with a status object; raises, always."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    async def read(self) -> object:
        """Receive a message, or `grpc.aio.EOF`."""
        return await self._context.read()

    async def send_initial_metadata(self, initial_metadata: "_Metadata") -> None:
        """Send the initial metadata before the first message."""
        await self._context.send_initial_metadata(initial_metadata)

    def add_done_callback(self, callback: "_OnDone") -> None:
        """Have `callback` called when the call has ended."""
        self._context.add_done_callback(callback)

    def set_trailing_metadata(self, trailing_metadata: "_Metadata") -> None:
        """Set what is sent with the status; the request id is kept."""
        self._context.set_trailing_metadata((*self.trailing_metadata(), *tuple(trailing_metadata)))

    def trailing_metadata(self) -> "_Pairs":  # type: ignore[override]  # the stub has a mapping
        """What is sent with the status."""
        return tuple((key, value) for key, value in self._context.trailing_metadata() or ())

    def invocation_metadata(self) -> "grpc.aio.Metadata | None":
        """The caller's metadata."""
        return self._context.invocation_metadata()

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status code of a call that returns."""
        self._context.set_code(code)

    def set_details(self, details: str) -> None:
        """Set the status message of a call that returns."""
        self._context.set_details(details)

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compress all messages of the call."""
        self._context.set_compression(compression)

    def disable_next_message_compression(self) -> None:
        """Send the next message as it is."""
        self._context.disable_next_message_compression()

    def peer(self) -> str:
        """The caller's address."""
        return self._context.peer()

    def time_remaining(self) -> float:
        """Seconds until the caller's deadline, None without one."""
        return self._context.time_remaining()

    def code(self) -> grpc.StatusCode:
        """The status code set so far."""
        return self._context.code()

    def details(self) -> str:
        """The status message set so far."""
        return self._context.details()

    def cancelled(self) -> bool:
        """Whether the caller has left."""
        return self._context.cancelled()

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._context.done()

    def peer_identities(self) -> "list[bytes] | None":
        """Identities of an authenticated caller."""
        found = self._context.peer_identities()
        return None if found is None else list(found)

    def peer_identity_key(self) -> str | None:
        """The property by which the caller was authenticated."""
        return self._context.peer_identity_key()

    def auth_context(self) -> "dict[str, list[bytes]]":
        """How the caller was authenticated."""
        return {key: list(values) for key, values in self._context.auth_context().items()}


def _retrieved(writing: "asyncio.Future[None]") -> None:
    """Look at a failure, so that asyncio does not report one whose awaiter has gone."""
    if not writing.cancelled():
        writing.exception()
