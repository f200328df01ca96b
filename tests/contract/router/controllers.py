"""The real servicer of the controller over a sizing that tests script."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from prometheus_client import CollectorRegistry

from services.controller.loop import Outlook
from services.controller.metrics import ControllerMetrics
from services.controller.servicer import CALLERS, SERVICE, ControllerServicer
from services.controller.servicer import Sizing as Sizes
from services.controller.tables import Tables
from understudy.errors import UnderstudyError
from understudy.serving import ServingSettings, start_service

WAKING = Outlook(replicas=1, ready=0, reason="Somebody waits.", start_s=0.0)
ASLEEP = Outlook(replicas=0, ready=0, reason="The budget of 0 GPUs is spent.", start_s=42.0)


class Sizing:
    """Keeps the reports of routers and answers what a test says."""

    def __init__(self, outlook: Outlook = WAKING) -> None:
        self.outlook = outlook
        self.error: UnderstudyError | None = None
        self.reports: list[dict[str, int]] = []
        self.routers: set[str] = set()
        self._changed = asyncio.Condition()
        self._told: set[asyncio.Task[None]] = set()

    def report(self, router: str, held: Mapping[str, int]) -> dict[str, Outlook]:
        self.reports.append({pool: count for pool, count in held.items() if count})
        self.routers.add(router)
        telling = asyncio.ensure_future(self._tell())
        self._told.add(telling)
        telling.add_done_callback(self._told.discard)
        if self.error is not None:
            raise self.error
        return dict.fromkeys(held, self.outlook)

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
        """Return once a condition over the reports holds."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(condition)

    async def wait_for(self, held: Mapping[str, int]) -> None:
        """Return once the newest report says exactly this."""
        await self.wait_until(lambda: self.reports[-1:] == [held])

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def serve_controller(
    stack: AsyncExitStack, sizing: Sizes | None, settings: ServingSettings | None = None
) -> str:
    """Serve one controller and return its address."""
    servicer = ControllerServicer(Tables([]), ControllerMetrics.on(CollectorRegistry()), sizing)
    service = await start_service(
        "controller",
        servicer.register,
        settings=settings or ServingSettings(),
        services=[SERVICE],
        callers=CALLERS,
    )
    stack.push_async_callback(service.drain, 1.0, asyncio.Event())
    return service.address
