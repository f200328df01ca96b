"""Makes pools of settings, native and external alike, and what keeps them fresh."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from services.router.clients.attention import WorkerClient
from services.router.clients.connections import Authorities
from services.router.clients.openai import EndpointClient, EndpointSettings
from services.router.external.credentials import follow_authorities, follow_key
from services.router.external.pool import ExternalModel, ExternalPool
from services.router.metrics import RouterMetrics
from services.router.pool_settings import ExternalSettings, PoolSettings
from services.router.pools import Pool
from services.router.watching import PoolWatch
from understudy.discovery import open_discovery
from understudy.grammar import Compiler
from understudy.serving import Followed, Transport
from understudy.text.tokenizer import Tokenizer

AnyPool = Pool | ExternalPool
Watch = Callable[[], Awaitable[None]]

logger = logging.getLogger(__name__)


def build_pools(
    settings: Sequence[PoolSettings],
    tokenizer: Tokenizer | None,
    metrics: RouterMetrics,
    transport: Transport,
) -> tuple[dict[str, AnyPool], list[Watch]]:
    """Return the pools by name, and what keeps each of them fresh: run it until cancelled."""
    pools: dict[str, AnyPool] = {}
    watches: list[Watch] = []
    for one in settings:
        metrics.start_pool(one.name)
        if one.external is not None:
            endpoints = _endpoints(one.name, one.external, metrics)
            pools[one.name] = _external_pool(one.name, one.external, endpoints)
            watches += [endpoint.watch for endpoint in endpoints]
            continue
        assert tokenizer is not None
        connect_worker = partial(
            WorkerClient,
            vocabulary_digest=tokenizer.vocabulary_digest,
            peer=transport.peer("attention"),
        )
        pools[one.name] = pool = Pool(one.name)
        watches.append(PoolWatch(pool, open_discovery(one.workers), connect_worker).run)
    return pools, watches


def _endpoints(
    pool: str, external: ExternalSettings, metrics: RouterMetrics
) -> list[EndpointClient]:
    key, authorities = _credentials(pool, external, metrics)
    how = EndpointSettings(
        pool=pool,
        model=external.model,
        key=key,
        authorities=authorities,
        connect_timeout_s=external.connect_timeout_s,
        idle_timeout_s=external.idle_timeout_s,
    )

    def count(outcome: str) -> None:
        metrics.external.labels(pool, outcome).inc()

    endpoints = [EndpointClient(url, how, count) for url in external.urls]
    metrics.watch_endpoints(pool, lambda: [endpoint.state for endpoint in endpoints])
    return endpoints


def _credentials(
    pool: str, external: ExternalSettings, metrics: RouterMetrics
) -> tuple[Followed[str] | None, Authorities | None]:
    """What a router shows to a pool's engines, and what it holds them to."""
    key, authorities = None, None
    if external.key_file is not None:
        key = follow_key(external.key_file, pool)
        metrics.watch_file("engine_key", key.is_refused)
        if any(url.startswith("http:") for url in external.urls):
            logger.warning("A key is sent to engines over plain HTTP.", extra={"pool": pool})
    if external.ca_file is not None and any(url.startswith("https:") for url in external.urls):
        authorities = follow_authorities(external.ca_file, pool)
        metrics.watch_file("engine_ca", authorities.is_refused)
    return key, authorities


def _external_pool(
    name: str, external: ExternalSettings, endpoints: Sequence[EndpointClient]
) -> ExternalPool:
    model = ExternalModel(
        name=external.model,
        position_parameters=external.position_parameters,
        max_context_tokens=external.max_context_tokens,
        wants_logprobs=external.logprobs,
    )
    return ExternalPool(name, model, endpoints)


def make_compiler(tokenizer: Tokenizer | None) -> Compiler | None:
    """Return what compiles grammars; None without a tokenizer."""
    return Compiler(tokenizer.source, eos_ids=tokenizer.eos_ids) if tokenizer else None


def read_tokenizer(path: Path | None) -> Tokenizer | None:
    """Read a `tokenizer.json` or a GGUF file; None where no pool needs one."""
    if path is None:
        return None
    return Tokenizer.from_gguf(path) if path.suffix == ".gguf" else Tokenizer.from_file(path)
