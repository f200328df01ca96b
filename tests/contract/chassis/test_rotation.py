"""An authority is replaced under load: no call fails, and the former one is refused afterwards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509

from deploy.certificates import COMPONENTS, Installation, main, publish
from understudy.rpc import from_rpc_error, open_channel, open_sync_channel
from understudy.serving import Identity, RunningService, ServingSettings, start_service

WHO = "/understudy.test.Who/Who"
COUNT = "/understudy.test.Who/Count"
CALLS = 25
"""Answers that every caller gets between one change and the next."""


async def who(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    """Answer with the caller's certificate."""
    return context.auth_context()["x509_pem_cert"][0]


async def count(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


def register(server: grpc.aio.Server) -> None:
    methods = {
        "Who": grpc.unary_unary_rpc_method_handler(who),
        "Count": grpc.stream_stream_rpc_method_handler(count),
    }
    handlers = grpc.method_handlers_generic_handler("understudy.test.Who", methods)
    server.add_generic_rpc_handlers((handlers,))


@dataclass
class Caller:
    """Something that calls over and over."""

    answers: int = 0
    failures: list[str] = field(default_factory=list)
    issuers: list[str] = field(default_factory=list)
    """Authorities whose certificates the service saw, lately last."""

    def note(self, certificate: bytes) -> None:
        issuer = x509.load_pem_x509_certificate(certificate).issuer.rfc4514_string()
        if issuer not in self.issuers[-1:]:
            self.issuers.append(issuer)
        self.answers += 1


class Load:
    """Callers of a service that go on until they are stopped."""

    def __init__(self, address: str, identity: Identity) -> None:
        self.address, self.identity = address, identity
        self.callers = {name: Caller() for name in ("kept", "sync", "fresh", "stream")}
        self.is_over = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._progress = asyncio.Event()

    async def kept(self) -> None:
        """Call over one channel."""
        async with open_channel(self.address, peer=self.identity.peer("experts")) as channel:
            ask = channel.unary_unary(WHO)
            await self._repeat("kept", lambda: ask(b"", timeout=30))

    async def fresh(self) -> None:
        """Call over a new channel each time."""

        async def ask() -> bytes:
            peer = self.identity.peer("experts")
            async with open_channel(self.address, peer=peer) as channel:
                return await channel.unary_unary(WHO)(b"", timeout=30)

        await self._repeat("fresh", ask)

    def sync(self) -> None:
        """Call over one channel without an event loop."""
        caller = self.callers["sync"]
        with open_sync_channel(self.address, peer=self.identity.peer("experts")) as channel:
            ask = channel.unary_unary(WHO, None, None)
            while not self.is_over.is_set():
                try:
                    caller.note(ask(b"", timeout=30))
                    self._loop.call_soon_threadsafe(self._progress.set)
                except grpc.RpcError as error:
                    caller.failures.append(from_rpc_error(error).message)

    async def stream(self) -> None:
        """Send and receive on one stream."""
        caller = self.callers["stream"]
        async with open_channel(self.address, peer=self.identity.peer("experts")) as channel:
            call = channel.stream_stream(COUNT)()
            while not self.is_over.is_set():
                number = str(caller.answers).encode()
                await call.write(number)
                if await call.read() != number:
                    caller.failures.append(f"after {number!r} the stream said something else")
                    return
                caller.answers += 1
                self._progress.set()
            await call.done_writing()

    async def go_on(self) -> None:
        """Return once every caller has got some more answers."""
        wanted = {name: caller.answers + CALLS for name, caller in self.callers.items()}
        while any(self.callers[name].answers < number for name, number in wanted.items()):
            assert not self.failures
            self._progress.clear()
            await self._progress.wait()

    @property
    def failures(self) -> list[str]:
        return [failure for caller in self.callers.values() for failure in caller.failures]

    async def _repeat(self, name: str, ask: Callable[[], Awaitable[bytes]]) -> None:
        caller = self.callers[name]
        while not self.is_over.is_set():
            try:
                caller.note(await ask())
                self._progress.set()
            except grpc.RpcError as error:
                caller.failures.append(from_rpc_error(error).message)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for run in (self.kept, self.fresh, self.stream):
                group.create_task(run())
            group.create_task(asyncio.to_thread(self.sync))
            try:
                yield
            finally:
                self.is_over.set()


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "certificates")


def run(installation: Installation, *arguments: str) -> None:
    main([arguments[0], str(installation.folder), *arguments[1:]])


class Mounts:
    """What pods see of an installation: each a copy, brought up to date when we say so."""

    def __init__(self, installation: Installation, folder: Path) -> None:
        self.installation, self.folder = installation, folder

    def update(self, *components: str) -> None:
        for component in components:
            source = self.installation.folder / component
            files = {
                name: (source / name).read_bytes() for name in ("tls.crt", "tls.key", "ca.crt")
            }
            publish(self.folder / component, files)


@pytest.fixture
def mounts(installation: Installation, tmp_path: Path) -> Mounts:
    run(installation, "make")
    made = Mounts(installation, tmp_path / "mounts")
    made.update(*COMPONENTS)
    return made


@pytest.fixture
async def service(mounts: Mounts) -> AsyncIterator[RunningService]:
    service = await start_service(
        "experts",
        register,
        settings=ServingSettings(tls_dir=mounts.folder / "experts"),
        services=[],
        callers=("attention",),
    )
    yield service
    await service.drain(0)


STEPS: Sequence[str] = ("trust", "switch", "finish")
ORDERS = [("experts", "attention"), ("attention", "experts")]


@pytest.mark.parametrize("order", ORDERS, ids=["service first", "caller first"])
async def test_an_authority_is_replaced_without_a_failed_call(
    service: RunningService, mounts: Mounts, tmp_path: Path, order: tuple[str, str]
) -> None:
    former = Identity(mounts.installation.folder / "attention", "understudy").current()
    load = Load(service.address, Identity(mounts.folder / "attention", "understudy"))
    async with load.running():
        await load.go_on()
        for step in STEPS:
            run(mounts.installation, step)
            for component in order:
                mounts.update(component)
                await load.go_on()

    assert load.failures == []
    for name in ("kept", "sync", "fresh"):
        assert len(load.callers[name].issuers) == 2, f"{name} did not change its certificate"
    await _require_refusal(service, former.chain, former.key, mounts)


async def _require_refusal(
    service: RunningService, chain: bytes, key: bytes, mounts: Mounts
) -> None:
    """A certificate of the former authority is not let in any more."""
    roots = (mounts.folder / "experts" / "ca.crt").read_bytes()
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    name = (("grpc.ssl_target_name_override", "experts.understudy"),)
    async with grpc.aio.secure_channel(service.address, credentials, options=name) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await channel.unary_unary(WHO)(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_channel_takes_the_new_certificates_and_keeps_the_running_stream(
    service: RunningService, mounts: Mounts
) -> None:
    peer = Identity(mounts.folder / "attention", "understudy").peer("experts")
    async with open_channel(service.address, peer=peer) as channel:
        stream = channel.stream_stream(COUNT)()
        await stream.write(b"before")
        assert await stream.read() == b"before"
        first = await channel.unary_unary(WHO)(b"", timeout=30)

        run(mounts.installation, "renew")
        mounts.update("attention", "experts")
        second = await channel.unary_unary(WHO)(b"", timeout=30)
        await stream.write(b"after")

        assert await stream.read() == b"after"
        assert first != second
        stream.cancel()


def test_a_synchronous_stream_outlives_its_certificates_and_its_channel_is_closed_with_it(
    mounts: Mounts,
) -> None:
    with _synchronous_service(mounts) as address:
        peer = Identity(mounts.folder / "attention", "understudy").peer("experts")
        with open_sync_channel(address, peer=peer) as channel:
            asked = threading.Event()

            def requests() -> Iterator[bytes]:
                yield b"before"
                asked.wait(30)
                yield b"after"

            stream = channel.stream_stream(COUNT, None, None)(requests(), timeout=30)
            assert next(stream) == b"before"
            first = channel.unary_unary(WHO, None, None)(b"", timeout=30)
            run(mounts.installation, "renew")
            mounts.update("attention", "experts")
            second = channel.unary_unary(WHO, None, None)(b"", timeout=30)
            asked.set()

            assert list(stream) == [b"after"]
            assert first != second


@contextmanager
def _synchronous_service(mounts: Mounts) -> Iterator[str]:
    """The same service on a loop of its own, for callers that block."""
    started, over = threading.Event(), asyncio.Event()
    found: list[tuple[str, asyncio.AbstractEventLoop]] = []

    async def serve() -> None:
        settings = ServingSettings(tls_dir=mounts.folder / "experts")
        service = await start_service(
            "experts", register, settings=settings, services=[], callers=("attention",)
        )
        found.append((service.address, asyncio.get_running_loop()))
        started.set()
        await over.wait()
        await service.drain(0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(30)
    address, loop = found[0]
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
