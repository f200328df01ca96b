"""Puts an expert worker together from its settings, and takes it apart again."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import torch
from prometheus_client import CollectorRegistry

from services.experts.canary import FAST_TOLERANCE, TOLERANCE, Canary
from services.experts.executors import (
    Availability,
    Executor,
    InProcess,
    TritonExecutor,
    TritonLimits,
)
from services.experts.holdings import Holdings
from services.experts.metrics import ExpertsMetrics
from services.experts.settings import AUTO, PREFIX, ExpertsSettings, parse_ids
from services.experts.spans import SpanAggregator, export_span
from services.experts.worker import ExpertWorker
from understudy.errors import FailedPrecondition
from understudy.model.decoder import resolve_compute
from understudy.model.locate import locate_model
from understudy.model.placing import CPU, resolve_device
from understudy.model.weights import load_model
from understudy.serving import HealthState, give_back_memory, return_large_buffers


@asynccontextmanager
async def open_worker(
    settings: ExpertsSettings, *, health: HealthState, registry: CollectorRegistry
) -> AsyncIterator[ExpertWorker]:
    """Load the shards and start computing; answers what is queued on exit.

    Raises FailedPrecondition for a model that cannot be loaded or divided as the settings say.
    """
    torch.set_num_threads(settings.threads)
    return_large_buffers()
    holdings = await asyncio.to_thread(load_holdings, settings)
    metrics = ExpertsMetrics.on(registry)
    spans = SpanAggregator(holdings.config.num_layers, export_span)
    with open_executor(settings, holdings, health, metrics) as executor:
        worker = ExpertWorker(
            holdings,
            num_credits=settings.credits,
            metrics=metrics,
            spans=spans,
            executor=executor,
        )
        give_back_memory()
        worker.start()
        try:
            yield worker
        finally:
            await asyncio.to_thread(worker.close)


@contextmanager
def open_executor(
    settings: ExpertsSettings, holdings: Holdings, health: HealthState, metrics: ExpertsMetrics
) -> Iterator[Executor]:
    """Choose who computes. Raises FailedPrecondition where Triton's client is not installed."""
    here = InProcess(holdings)
    if settings.executor == "in_process":
        yield here
        return
    try:
        from services.experts.clients import TritonShards
    except ImportError as error:
        raise FailedPrecondition(
            f"{PREFIX}EXECUTOR is triton and its client is not installed ({error}); install the"
            " extra `worker`, or compute in_process."
        ) from error
    has_fallback = settings.triton_fallback == "in_process"
    model = settings.triton_model if settings.triton_model != AUTO else holdings.package_name
    is_local = settings.triton_shared_memory
    client = TritonShards(settings.triton, model, holdings, is_local=is_local)
    availability = Availability(metrics, None if has_fallback else health)
    tolerance = FAST_TOLERANCE if settings.compute == "fast" else TOLERANCE
    canary = Canary(client, holdings, availability, metrics, tolerance=tolerance)
    limits = TritonLimits(settings.triton_timeout_s, settings.triton_min_tokens)
    canary.start()
    try:
        yield TritonExecutor(client, here if has_fallback else None, availability, limits, metrics)
    finally:
        canary.close()
        client.close()


def load_holdings(settings: ExpertsSettings) -> Holdings:
    """Load the model that the settings name and keep the shards that they say."""
    layers = parse_ids(settings.layers, f"{PREFIX}LAYERS")
    expert_ids = parse_ids(settings.expert_ids, f"{PREFIX}EXPERT_IDS")
    path, compute = locate_model(settings.model), resolve_compute(settings.compute)
    model = load_model(path, settings.weights_dtype, compute)
    # In Triton mode its container alone owns the GPU.
    is_here = settings.executor == "in_process" or settings.device == "cuda"
    device = resolve_device(settings.device) if is_here else CPU
    return Holdings.take(model, layers, expert_ids, device)
