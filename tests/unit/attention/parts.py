"""Sequences, engines and runners without tensors, for tests of the attention worker's rules."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from opentelemetry.trace import NoOpTracer
from prometheus_client import CollectorRegistry

from services.attention.blocks import BlockManager
from services.attention.core import Choice, EngineCore, OnLoaded
from services.attention.decoding import Decoding
from services.attention.metrics import EngineMetrics
from services.attention.observers import NoObserver, StepObserver
from services.attention.scheduler import ScheduledChunk, Scheduler
from services.attention.sequence import DecodingParams, Priority, SequenceKey, Submission
from services.attention.sequence import Sequence as TokenSequence
from services.attention.sharing import Sharing

EOS = 2
ROOT = b"r" * 32


def chain_hash(sequence: TokenSequence, index: int, block_size: int = 4) -> bytes:
    """A hash over everything up to the end of a block, as a chain makes it."""
    prefix = sequence.tokens[: (index + 1) * block_size]
    text = f"{sequence.submission.kv_root!r}{sequence.submission.adapter}{prefix}"
    return hashlib.sha256(text.encode()).digest()


def submission(
    sequence_id: int = 1,
    tokens: Sequence[int] = (5, 6, 7),
    *,
    max_tokens: int = 8,
    ignore_eos: bool = False,
    kv_root: bytes = b"",
    num_committed: int = 0,
    deadline_s: float = math.inf,
    adapter: str = "",
    priority: Priority = Priority.STANDARD,
    tenant: str = "",
) -> Submission:
    """A checked submission."""
    return Submission(
        key=SequenceKey(1, sequence_id),
        tokens=tuple(tokens),
        num_committed=num_committed,
        deadline_s=deadline_s,
        params=DecodingParams(max_tokens=max_tokens, ignore_eos=ignore_eos),
        kv_root=kv_root,
        tenant=tenant or ("acme" if kv_root else ""),
        adapter=adapter,
        priority=priority,
    )


def next_token(tokens: Sequence[int]) -> int:
    """The token that the fake model puts after these: a function of all of them, never EOS."""
    return 3 + sum((index + 1) * token for index, token in enumerate(tokens)) % 89


@dataclass
class FakeRunner:
    """A model whose next token is a function of the tokens before it."""

    steps: list[list[int]] = field(default_factory=list)
    on_run: Callable[[], None] = lambda: None

    def run(self, chunks: Sequence[ScheduledChunk]) -> list[Choice | None]:
        self.steps.append([chunk.num_tokens for chunk in chunks])
        self.on_run()
        return [
            Choice(next_token(chunk.sequence.tokens), -0.5, 0.25, 0.0)
            if chunk.is_sampling
            else None
            for chunk in chunks
        ]


def make_scheduler(
    num_blocks: int = 16,
    block_size: int = 4,
    *,
    token_budget: int = 16,
    max_sequences: int = 8,
    max_waiting: int = 8,
    batch_share: float = 0.25,
    mixed_budget: int = 0,
    doubling_context: int = 0,
) -> Scheduler:
    """A scheduler over a few small blocks."""
    return Scheduler(
        BlockManager(num_blocks, block_size),
        token_budget=token_budget,
        max_sequences=max_sequences,
        max_waiting=max_waiting,
        batch_share=batch_share,
        mixed_budget=mixed_budget,
        doubling_context=doubling_context,
        next_hash=lambda sequence, index: chain_hash(sequence, index, block_size),
    )


def make_core(
    runner: FakeRunner | None = None,
    scheduler: Scheduler | None = None,
    *,
    max_context: int = 64,
    observer: StepObserver | None = None,
    sharing: Sharing | None = None,
    on_loaded: OnLoaded = lambda key, payloads: None,
    metrics: EngineMetrics | None = None,
) -> EngineCore:
    """An engine core over a fake runner."""
    return EngineCore(
        scheduler=make_scheduler() if scheduler is None else scheduler,
        runner=FakeRunner() if runner is None else runner,
        decoding=Decoding([EOS], max_context),
        observer=NoObserver() if observer is None else observer,
        metrics=EngineMetrics(CollectorRegistry()) if metrics is None else metrics,
        tracer=NoOpTracer(),
        sharing=sharing,
        on_loaded=on_loaded,
    )
