"""Puts a router together from its settings."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from services.router.admission import Admission
from services.router.casting import AnyPool, build_pools, make_compiler, read_tokenizer
from services.router.clients.controller import ControllerClient
from services.router.conductor import Conductor
from services.router.holding import Holding
from services.router.http.app import Edge
from services.router.http.server import HttpServer
from services.router.journal import Journal, connect
from services.router.metrics import RouterMetrics
from services.router.plans import Planner
from services.router.policy import LLM, SLM
from services.router.reporting import Reporter
from services.router.sealing import KEY_BYTES, Sealer
from services.router.servicer import RouterServicer
from services.router.settings import RouterSettings
from services.router.stage import Stage
from services.router.tenants import Tenants, follow_keys
from services.router.tries import Company
from understudy.registry import Version, read_version
from understudy.serving import PLAINTEXT, HealthState, Transport, text_or_file
from understudy.text.tokenizer import Tokenizer

_READY_POLL_S = 0.05

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Router:
    """Everything that `serve()` runs."""

    conductor: Conductor
    servicer: RouterServicer
    edge: HttpServer | None
    tasks: Sequence[Callable[[], Awaitable[None]]]

    async def drain(self, grace_s: float) -> None:
        """End the HTTP edge; the chassis ends the rest."""
        if self.edge is not None:
            await self.edge.drain(grace_s)


def build_router(
    settings: RouterSettings,
    *,
    health: HealthState,
    registry: CollectorRegistry,
    transport: Transport = PLAINTEXT,
) -> Router:
    """Build a router; `health` turns ready once its pools have been seen."""
    tokenizer = read_tokenizer(settings.tokenizer)
    metrics = RouterMetrics(registry)
    pools, watches = build_pools(settings.parsed_pools(), tokenizer, metrics, transport)
    holding = Holding(metrics)
    sealer = Sealer(_journal_key(settings))
    redis = connect(settings.control_redis, authority=settings.control_redis_ca)
    journal = Journal(redis, sealer, settings.journal_ttl_s)
    conductor = Conductor(
        _company(settings, pools, tokenizer, metrics, holding),
        Planner(tokenizer, make_compiler(tokenizer)),
        journal,
        max_prompt_bytes=settings.max_prompt_bytes,
        request_timeout_s=settings.request_timeout_s,
    )
    edge = _edge(settings, conductor, health, transport)
    tasks: list[Callable[[], Awaitable[None]]] = [
        *watches,
        journal.run,
        lambda: announce(
            pools, edge, health, settings.startup_patience_s, may_sleep=bool(settings.controllers)
        ),
    ]
    if settings.controllers:
        tasks.append(Reporter(holding, _controller(settings, transport), metrics).run)
    if edge is not None:
        tasks.append(edge.run)
    return Router(conductor, RouterServicer(conductor), edge, tasks)


def _company(
    settings: RouterSettings,
    pools: Mapping[str, AnyPool],
    tokenizer: Tokenizer | None,
    metrics: RouterMetrics,
    holding: Holding,
) -> Company:
    return Company(
        stage=Stage(pools, _version(settings)),
        tokenizer=tokenizer,
        tenants=_tenants(settings, metrics),
        admission=Admission(
            settings.max_requests,
            settings.llm_max_attempts,
            settings.escalations_per_s,
            time.monotonic,
        ),
        metrics=metrics,
        holding=holding,
        slm_patience_s=settings.slm_patience_s,
        llm_patience_s=settings.llm_patience_s,
        wake_patience_s=settings.wake_patience_s,
    )


def _controller(settings: RouterSettings, transport: Transport) -> ControllerClient:
    """Connect under a name that no other router has, be it a container of the same pod."""
    name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
    return ControllerClient(settings.controllers, name, transport.peer("controller"))


async def announce(
    pools: Mapping[str, AnyPool],
    edge: HttpServer | None,
    health: HealthState,
    startup_patience_s: float,
    *,
    may_sleep: bool,
) -> None:
    """Mark the router ready once it listens and every pool was seen, or the LLM after a while.

    A pool that may sleep is not waited for longer than that either: only requests wake it. The
    router stays ready: a pool that goes away later is told to callers request by request.
    """
    patience_ends_s = time.monotonic() + startup_patience_s
    while True:
        missing = [name for name, pool in pools.items() if not pool.is_available]
        is_enough = may_sleep or LLM not in missing
        has_pools = not missing or (is_enough and time.monotonic() > patience_ends_s)
        if has_pools and (edge is None or edge.is_listening):
            break
        await asyncio.sleep(_READY_POLL_S)
    if missing:
        logger.warning("Ready without every pool.", extra={"missing": ",".join(missing)})
    health.mark_ready()


def _edge(
    settings: RouterSettings, conductor: Conductor, health: HealthState, transport: Transport
) -> HttpServer | None:
    if not settings.http_listen:
        return None
    edge = Edge(
        conductor,
        health,
        max_body_bytes=settings.max_body_bytes,
        request_timeout_s=settings.request_timeout_s,
    )
    return HttpServer(
        edge.app(),
        settings.http_listen,
        max_concurrency=settings.max_requests,
        identity=transport.public,
    )


def _version(settings: RouterSettings) -> Version | None:
    directories = [pool.version_dir for pool in settings.parsed_pools() if pool.name == SLM]
    if not directories or directories[0] is None:
        return None
    return read_version(directories[0])


def _tenants(settings: RouterSettings, metrics: RouterMetrics) -> Tenants:
    secret = text_or_file(settings.tenant_secret).strip().encode()
    if settings.keys_file is None:
        keys = settings.parsed_keys()
        return Tenants(lambda: keys, secret)
    followed = follow_keys(settings.keys_file, settings.parsed_keys)
    followed.current()
    metrics.watch_file("api_keys", followed.is_refused)
    return Tenants(followed.current, secret)


def _journal_key(settings: RouterSettings) -> bytes:
    key = settings.parsed_journal_key()
    if key is not None:
        return key
    if settings.control_redis:
        logger.warning("No journal key is set; only this replica can resume its answers.")
    return secrets.token_bytes(KEY_BYTES)
