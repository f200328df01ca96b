"""Channels over TLS that begin anew with the next call once the credentials are new.

grpcio fixes the credentials of a channel when it is made. These ask for the current ones at each
call; when they are new, the call goes over a new connection, and calls in flight end on the old
one, which is closed with the last of them.
"""

import threading
from collections.abc import Callable
from functools import partialmethod
from types import TracebackType
from typing import Generic, Self, TypeVar, cast
from weakref import WeakKeyDictionary

import grpc
import grpc.aio

from understudy.rpc.peers import Peer

C = TypeVar("C", bound=grpc.Channel | grpc.aio.Channel)
Encode = Callable[[object], bytes]
Decode = Callable[[bytes], object]
Call = Callable[..., object]
Make = Callable[[grpc.ChannelCredentials], C]


class _Generation(Generic[C]):
    """A channel with one set of credentials, and the calls that run on it."""

    def __init__(self, credentials: grpc.ChannelCredentials, channel: C) -> None:
        self.credentials = credentials
        self.channel = channel
        # Of stubs that are alive: some make one for each call.
        self.methods: WeakKeyDictionary[Method[C], Call] = WeakKeyDictionary()
        self.num_calls = 0


class Generations(Generic[C]):
    """The current channel to a peer, and former ones until their calls have ended."""

    def __init__(self, peer: Peer, make: Make[C], close: Callable[[C], None]) -> None:
        """Make channels with `make`; `close` gets those that no call uses any more."""
        self._peer, self._make, self._close = peer, make, close
        # A call that the collector of cycles ends may end inside of any of the blocks below.
        self._lock = threading.RLock()
        credentials = peer.credentials()
        self._current = _Generation(credentials, make(credentials))
        self._former: list[_Generation[C]] = []

    @property
    def current(self) -> C:
        """The channel that calls went over lately."""
        return self._current.channel

    @property
    def all(self) -> list[C]:
        """Every channel that is open."""
        with self._lock:
            return [self._current.channel, *(former.channel for former in self._former)]

    def begin(self, method: "Method[C]") -> tuple[_Generation[C], Call]:
        """Count a call in."""
        credentials = self._peer.credentials()
        with self._lock:
            if credentials is not self._current.credentials:
                self._former.append(self._current)
                self._current = _Generation(credentials, self._make(credentials))
            generation = self._current
            generation.num_calls += 1
            call = generation.methods.get(method)
            if call is None:
                call = generation.methods[method] = method.on(generation.channel)
        self._close_unused()
        return generation, call

    def end(self, generation: _Generation[C]) -> None:
        """Count a call out."""
        with self._lock:
            generation.num_calls -= 1
        self._close_unused()

    def _close_unused(self) -> None:
        with self._lock:
            unused = [former for former in self._former if not former.num_calls]
            self._former = [former for former in self._former if former.num_calls]
        for former in unused:
            self._close(former.channel)


class Method(Generic[C]):
    """One method of a service: called like grpcio's, over the channel that is then current."""

    def __init__(
        self, generations: Generations[C], on: Callable[[C], object], *, is_stream: bool
    ) -> None:
        self._generations = generations
        self._on = on
        self._is_stream = is_stream

    def on(self, channel: C) -> Call:
        """Return the method of one channel."""
        return cast("Call", self._on(channel))

    def __call__(self, *args: object, **options: object) -> object:
        """Start a call; takes and returns what the method of a channel does."""
        generation, call = self._generations.begin(self)
        try:
            started = call(*args, **options)
        except BaseException:
            self._generations.end(generation)
            raise
        if isinstance(started, grpc.aio.Call):
            started.add_done_callback(lambda _: self._generations.end(generation))
        elif not (self._is_stream and self._is_told_of_end(started, generation)):
            self._generations.end(generation)
        return started

    def _is_told_of_end(self, started: object, generation: _Generation[C]) -> bool:
        running = cast("grpc.RpcContext", started)
        return running.add_callback(lambda: self._generations.end(generation))


class _Methods(Generic[C]):
    """What generated stubs ask a channel for; codecs are grpcio's."""

    def __init__(self, generations: Generations[C]) -> None:
        self._generations = generations

    def _method(
        self,
        kind: str,
        method: str,
        request_serializer: Encode | None = None,
        response_deserializer: Decode | None = None,
        _registered_method: bool = False,
        *,
        is_stream: bool,
    ) -> Method[C]:
        """Return a method of one kind; `is_stream` says that it has many answers."""
        codec = (method, request_serializer, response_deserializer)
        return Method(self._generations, lambda on: getattr(on, kind)(*codec), is_stream=is_stream)

    unary_unary = partialmethod(_method, "unary_unary", is_stream=False)
    unary_stream = partialmethod(_method, "unary_stream", is_stream=True)
    stream_unary = partialmethod(_method, "stream_unary", is_stream=False)
    stream_stream = partialmethod(_method, "stream_stream", is_stream=True)


class RotatingChannel(_Methods[grpc.Channel]):
    """A channel for callers without an event loop; its methods have no `with_call` or `future`."""

    def __init__(self, peer: Peer, make: Make[grpc.Channel]) -> None:
        super().__init__(Generations(peer, make, _close_elsewhere))

    def close(self) -> None:
        """End every call and hang up."""
        for channel in self._generations.all:
            channel.close()

    def subscribe(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False
    ) -> None:
        """Hear of the state of the current connection."""
        self._generations.current.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Hear no more of it."""
        self._generations.current.unsubscribe(callback)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncRotatingChannel(_Methods[grpc.aio.Channel]):
    """A channel for callers with an event loop."""

    def __init__(self, peer: Peer, make: Make[grpc.aio.Channel]) -> None:
        # Dropping an asyncio channel closes it.
        super().__init__(Generations(peer, make, lambda _: None))

    async def close(self, grace: float | None = None) -> None:
        """End every call, after a grace in seconds where one is given, and hang up."""
        for channel in self._generations.all:
            await channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return the state of the current connection."""
        return self._generations.current.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return once the current connection is in another state."""
        await self._generations.current.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Return once the current connection is ready."""
        await self._generations.current.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _close_elsewhere(channel: grpc.Channel) -> None:
    """Close on another thread: the one that says a call has ended belongs to the channel."""
    threading.Thread(target=channel.close, name="channel-close", daemon=True).start()
