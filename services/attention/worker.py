"""The attention worker as its servicer sees it: sessions in front, the engine behind.

Checks and compiles on the event loop's side, so that the engine thread only ever gets sequences
that are ready to be computed.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry

from services.attention.admission import Limits, check_submission
from services.attention.blocks import BlockManager
from services.attention.core import EngineCore, OnLoaded
from services.attention.decoding import Decoding, StopWatch
from services.attention.engine import Engine
from services.attention.grammars import GrammarsOnDemand
from services.attention.loading import ServedModel
from services.attention.metrics import EngineMetrics, SessionMetrics
from services.attention.observers import StepObserver
from services.attention.outputs import StepOutput
from services.attention.runner import ModelRunner
from services.attention.scheduler import Scheduler
from services.attention.sequence import Submission
from services.attention.sessions import Session, SessionHub
from services.attention.settings import AttentionSettings
from services.attention.sharing import ChainKeys, KvTier, Sharing
from understudy.errors import Aborted, Unavailable, UnderstudyError
from understudy.grammar import GrammarSource
from understudy.model.decoder import Compute
from understudy.serving import HealthState
from understudy.telemetry import tracer


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker is and how busy it is."""

    version: str
    digest: bytes
    adapters: tuple[str, ...]
    max_context: int
    position_parameters: int
    num_blocks: int
    num_free_blocks: int
    block_size: int
    num_running: int
    num_waiting: int
    backlog_tokens: int
    is_disaggregated: bool
    vocab_size: int
    vocabulary_digest: bytes
    compute: Compute
    is_batch_independent: bool


class AttentionWorker:
    """One model, one engine, the sessions of many routers. Made and used on the event loop."""

    def __init__(
        self,
        served: ServedModel,
        settings: AttentionSettings,
        *,
        observer: StepObserver,
        tier: KvTier | None,
        health: HealthState,
        registry: CollectorRegistry,
    ) -> None:
        """Assemble the parts; `start` starts the engine thread."""
        self._served = served
        self._settings = settings
        self._health = health
        self._is_started = self._is_draining = False
        self._has_experts = True
        self._loop = asyncio.get_running_loop()
        self._limits = Limits(served.model.config.vocab_size, served.max_context, served.adapters)
        self._grammars = GrammarsOnDemand(served)
        metrics = EngineMetrics(registry)
        self.engine = Engine(
            lambda on_loaded: _make_core(served, settings, observer, tier, metrics, on_loaded),
            publish=self._publish,
            on_death=self._die,
            metrics=metrics,
        )
        self.sessions = SessionHub(
            max_outputs=settings.session_queue,
            engine=self.engine,
            metrics=SessionMetrics(registry),
        )

    @property
    def max_context(self) -> int:
        """Largest prompt plus output in tokens."""
        return self._limits.max_context

    def start(self) -> None:
        """Start computing and say so."""
        self.engine.start()
        self._is_started = True
        self._tell_health()

    async def stop(self) -> None:
        """Stop computing; what still runs is lost."""
        await asyncio.to_thread(self.engine.stop)

    async def drain(self, grace_s: float) -> int:
        """Take no more sequences, wait for the running ones; return how many were handed over."""
        self._is_draining = True
        self._tell_health()
        return await self.sessions.drain(grace_s)

    async def hand_over(self, grace_s: float) -> None:
        """Drain because the process is to end."""
        await self.drain(grace_s)

    def note_experts(self, has_experts: bool) -> None:
        """Say whether feed-forwards can be computed: without them this worker takes no work."""
        self._has_experts = has_experts
        self._tell_health()

    async def admit(
        self, session: Session, submission: Submission, grammar: GrammarSource | None
    ) -> None:
        """Check a submission, compile its grammar and queue it; a refusal fails only itself."""
        sequence_id = submission.key.sequence_id
        try:
            self._check_serving()
            check_submission(submission, self._limits)
            ready = await self._with_output_state(submission, grammar)
            if session.is_live(sequence_id):  # not cancelled while its grammar was compiled
                self.engine.submit(ready)
        except UnderstudyError as error:
            session.fail(sequence_id, error)

    def info(self) -> WorkerInfo:
        """Return what this worker is and how busy it is."""
        served, stats, config = self._served, self.engine.stats, self._served.model.config
        return WorkerInfo(
            version=served.version,
            digest=served.kv_digests[""],
            adapters=tuple(sorted(served.adapters)),
            max_context=served.max_context,
            position_parameters=config.cost_per_position(),
            num_blocks=served.kv.num_blocks,
            num_free_blocks=stats.num_free_blocks,
            block_size=served.kv.block_size,
            num_running=stats.num_running,
            num_waiting=stats.num_waiting,
            backlog_tokens=stats.backlog_tokens,
            is_disaggregated=self._settings.ffn == "remote",
            vocab_size=config.vocab_size,
            vocabulary_digest=served.vocabulary.digest,
            compute=served.compute,
            is_batch_independent=served.model.is_batch_independent,
        )

    def _tell_health(self) -> None:
        if self._is_draining:
            self._health.mark_unready("draining")
        elif not self._has_experts:
            pool = self._settings.pool
            self._health.mark_unready(f"expert workers of pool {pool} are away")
        elif self._is_started:
            self._health.mark_ready()

    def _check_serving(self) -> None:
        if self.sessions.refusal is not None:
            raise self.sessions.refusal
        if self.engine.is_dead:
            raise Unavailable("The engine of this attention worker is not running.")

    async def _with_output_state(
        self, submission: Submission, grammar: GrammarSource | None
    ) -> Submission:
        """Return the submission with matcher and stop texts that know its committed tokens."""
        committed = submission.tokens[submission.num_prompt_tokens :]
        stop_texts = None
        if submission.params.stop:
            stop_texts = StopWatch(submission.params.stop, self._token_bytes)
            for token in committed:
                stop_texts.push(token)
        if grammar is None:
            return replace(submission, stop_texts=stop_texts)
        compiled = await asyncio.to_thread(self._grammars.compile, grammar)
        matcher = compiled.matcher()
        matcher.accept_many(committed)
        return replace(submission, stop_texts=stop_texts, matcher=matcher)

    def _token_bytes(self, token: int) -> bytes:
        vocabulary = self._served.vocabulary
        return vocabulary.token_bytes(token) if token < vocabulary.size else b""

    def _publish(self, outputs: Mapping[int, StepOutput]) -> None:
        self._loop.call_soon_threadsafe(self.sessions.deliver, outputs)

    def _die(self) -> None:
        self._loop.call_soon_threadsafe(self._bury)

    def _bury(self) -> None:
        reason = "the engine thread died"
        self._health.mark_failed(reason)
        self.sessions.fail_all(Aborted(f"The sequence was lost: {reason}."))
        self.sessions.refuse(Unavailable("The engine of this attention worker has died."))


def _make_core(
    served: ServedModel,
    settings: AttentionSettings,
    observer: StepObserver,
    tier: KvTier | None,
    metrics: EngineMetrics,
    on_loaded: OnLoaded,
) -> EngineCore:
    blocks = BlockManager(served.kv.num_blocks, served.kv.block_size)
    keys = ChainKeys(served.kv_digests, served.kv.block_size)
    runner = ModelRunner(served.model, served.kv, served.adapters, served.vocabulary.size)
    sharing = None
    if tier is not None:
        sharing = Sharing(
            blocks=blocks,
            contents=runner,
            keys=keys,
            tier=tier,
            min_tokens=settings.kvstore_min_tokens,
            write_touches=settings.kvstore_write_touches,
        )
    return EngineCore(
        scheduler=Scheduler(
            blocks,
            token_budget=settings.token_budget,
            max_sequences=settings.max_sequences,
            max_waiting=settings.max_waiting,
            mixed_budget=settings.mixed_token_budget,
            doubling_context=served.doubling_context,
            batch_share=settings.batch_share,
            next_hash=keys.next_hash,
        ),
        runner=runner,
        decoding=Decoding(served.eos_ids, served.max_context),
        observer=observer,
        metrics=metrics,
        tracer=tracer(__name__),
        sharing=sharing,
        on_loaded=on_loaded,
    )
