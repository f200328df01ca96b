"""Puts a worker together from its settings, and takes it apart again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import torch
from prometheus_client import CollectorRegistry

from services.attention.clients import KvStoreClient, RemoteExperts
from services.attention.dispatch import require_frames_fit
from services.attention.loading import load_weights, serve_model
from services.attention.metrics import TierMetrics
from services.attention.observers import NoObserver
from services.attention.settings import AttentionSettings
from services.attention.tiering import StoreTier
from services.attention.worker import AttentionWorker
from understudy.model.weights import LoadedModel
from understudy.rpc import Peers, plaintext
from understudy.serving import HealthState, give_back_memory, return_large_buffers


@asynccontextmanager
async def open_worker(
    settings: AttentionSettings,
    *,
    health: HealthState,
    registry: CollectorRegistry,
    peers: Peers = plaintext,
) -> AsyncIterator[AttentionWorker]:
    """Load the model, connect to what it needs and start computing; stops it all on exit.

    Raises FailedPrecondition for a model that does not fit together, and Unavailable when expert
    workers are needed and none is placed.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return_large_buffers()
    # On this thread, which serves nobody yet: glibc never takes back the top of another's heap.
    loaded = load_weights(settings)
    async with AsyncExitStack() as stack:
        remote = await _open_experts(settings, loaded, peers, stack)
        served = serve_model(settings, loaded, remote)
        del loaded  # feed-forward weights that live elsewhere are not kept here
        worker = AttentionWorker(
            served,
            settings,
            observer=NoObserver() if remote is None else remote,
            tier=_open_tier(settings, registry, peers, stack),
            health=health,
            registry=registry,
        )
        if remote is not None:
            _follow_experts(worker, remote)
        give_back_memory()
        worker.start()
        stack.push_async_callback(worker.stop)
        yield worker


async def _open_experts(
    settings: AttentionSettings, loaded: LoadedModel, peers: Peers, stack: AsyncExitStack
) -> RemoteExperts | None:
    if settings.ffn == "fused":
        return None
    require_frames_fit(loaded.config, settings.token_budget)
    remote = RemoteExperts(
        loaded.config, loaded.ffn_digest, settings.placement, settings.pool, peers=peers
    )
    stack.callback(remote.close)
    await asyncio.to_thread(remote.start)
    return remote


def _follow_experts(worker: AttentionWorker, remote: RemoteExperts) -> None:
    """Let the worker take work only while its expert workers are there."""
    loop = asyncio.get_running_loop()

    def on_readiness(is_ready: bool) -> None:
        loop.call_soon_threadsafe(worker.note_experts, is_ready)

    remote.serve(lambda: worker.engine.is_wanted, on_readiness)


def _open_tier(
    settings: AttentionSettings, registry: CollectorRegistry, peers: Peers, stack: AsyncExitStack
) -> StoreTier | None:
    if not settings.kvstore:
        return None
    client = KvStoreClient(settings.kvstore, peers("kvstore"))
    stack.push_async_callback(client.aclose)
    tier = StoreTier(
        client,
        asyncio.get_running_loop(),
        TierMetrics(registry),
        timeout_s=settings.kvstore_timeout_s,
    )
    stack.push_async_callback(tier.aclose)
    return tier
