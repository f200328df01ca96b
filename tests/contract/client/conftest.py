"""One way to drive both clients, so that each test runs against either."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Unpack

import pytest

from understudy import AsyncClient, Client, Event, GenerateParams, Model, RetryPolicy
from understudy.testing import FakeRouter

RETRIES = RetryPolicy(max_attempts=4, initial_backoff_s=0.01, max_backoff_s=0.05)


class SyncFace:
    """Drives the blocking client."""

    def __init__(
        self, address: str, api_key: str | None = None, retries: RetryPolicy = RETRIES
    ) -> None:
        self._address = address
        self._api_key = api_key
        self._retries = retries

    def events(
        self, on_event: Callable[[Event], None] | None = None, **params: Unpack[GenerateParams]
    ) -> list[Event]:
        seen: list[Event] = []
        with (
            Client(self._address, api_key=self._api_key, retries=self._retries) as client,
            client.generate(**params) as stream,
        ):
            for event in stream:
                seen.append(event)
                if on_event is not None:
                    on_event(event)
        return seen

    def first_event(self, **params: Unpack[GenerateParams]) -> Event:
        with (
            Client(self._address, retries=self._retries) as client,
            client.generate(**params) as stream,
        ):
            return next(stream)

    def models(self) -> tuple[Model, ...]:
        with Client(self._address, retries=self._retries) as client:
            return client.models()


class AsyncFace:
    """Drives the asyncio client."""

    def __init__(
        self, address: str, api_key: str | None = None, retries: RetryPolicy = RETRIES
    ) -> None:
        self._address = address
        self._api_key = api_key
        self._retries = retries

    def events(
        self, on_event: Callable[[Event], None] | None = None, **params: Unpack[GenerateParams]
    ) -> list[Event]:
        async def run() -> list[Event]:
            seen: list[Event] = []
            async with (
                AsyncClient(self._address, api_key=self._api_key, retries=self._retries) as client,
                client.generate(**params) as stream,
            ):
                async for event in stream:
                    seen.append(event)
                    if on_event is not None:
                        await asyncio.to_thread(on_event, event)
            return seen

        return asyncio.run(run())

    def first_event(self, **params: Unpack[GenerateParams]) -> Event:
        async def run() -> Event:
            async with (
                AsyncClient(self._address, retries=self._retries) as client,
                client.generate(**params) as stream,
            ):
                return await anext(stream)

        return asyncio.run(run())

    def models(self) -> tuple[Model, ...]:
        async def run() -> tuple[Model, ...]:
            async with AsyncClient(self._address, retries=self._retries) as client:
                return await client.models()

        return asyncio.run(run())


Face = SyncFace | AsyncFace


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    with FakeRouter() as router:
        yield router


@pytest.fixture(params=[SyncFace, AsyncFace], ids=["sync", "async"])
def face_type(request: pytest.FixtureRequest) -> type[Face]:
    chosen: type[Face] = request.param
    return chosen


@pytest.fixture
def face(face_type: type[Face], router: FakeRouter) -> Face:
    return face_type(router.address)
