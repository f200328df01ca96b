"""Puts an expert worker together from its settings, and takes it apart again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from prometheus_client import CollectorRegistry

from services.experts.holdings import Holdings
from services.experts.metrics import ExpertsMetrics
from services.experts.settings import PREFIX, ExpertsSettings, parse_ids
from services.experts.spans import SpanAggregator, export_span
from services.experts.worker import ExpertWorker
from understudy.model.decoder import resolve_compute
from understudy.model.locate import locate_model
from understudy.model.weights import load_model


@asynccontextmanager
async def open_worker(
    settings: ExpertsSettings, registry: CollectorRegistry
) -> AsyncIterator[ExpertWorker]:
    """Load the shards and start computing; answers what is queued on exit.

    Raises FailedPrecondition for a model that cannot be loaded or divided as the settings say.
    """
    torch.set_num_threads(settings.threads)
    holdings = await asyncio.to_thread(load_holdings, settings)
    spans = SpanAggregator(holdings.config.num_layers, export_span)
    worker = ExpertWorker(
        holdings,
        num_credits=settings.credits,
        metrics=ExpertsMetrics.on(registry),
        spans=spans,
    )
    worker.start()
    try:
        yield worker
    finally:
        await asyncio.to_thread(worker.close)


def load_holdings(settings: ExpertsSettings) -> Holdings:
    """Load the model that the settings name and keep the shards that they say."""
    layers = parse_ids(settings.layers, f"{PREFIX}LAYERS")
    expert_ids = parse_ids(settings.expert_ids, f"{PREFIX}EXPERT_IDS")
    path, compute = locate_model(settings.model), resolve_compute(settings.compute)
    model = load_model(path, settings.weights_dtype, compute)
    return Holdings.take(model, layers, expert_ids)
