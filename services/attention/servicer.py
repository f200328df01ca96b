"""`AttentionService`: protobuf in, domain objects through the worker, protobuf out."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Final

import grpc

from services.attention import sessions
from services.attention.outputs import Failed, Finished, StepOutput, TokenRun
from services.attention.sequence import (
    DecodingParams,
    FinishReason,
    Priority,
    SequenceKey,
    Submission,
)
from services.attention.worker import AttentionWorker
from understudy.api.attention.v1 import attention_pb2, attention_pb2_grpc
from understudy.api.types.v1 import types_pb2
from understudy.errors import Internal, InvalidArgument, UnderstudyError
from understudy.grammar import GrammarKind, GrammarSource
from understudy.model.decoder import Compute
from understudy.rpc import error_to_proto, to_seconds

SERVICE: Final = attention_pb2.DESCRIPTOR.services_by_name["AttentionService"].full_name
CALLERS: Final = ("router", "controller")
"""Components that may call, as in deploy/telemetry/schema.yaml."""
SESSION_METHOD: Final = f"/{SERVICE}/Session"
MAX_SEQUENCE_S: Final = 3600.0
MAX_GRACE_S: Final = 600.0
DEFAULT_MAX_TOKENS: Final = 256
logger = logging.getLogger(__name__)

_FINISH_REASONS: Final = {
    FinishReason.STOP: types_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: types_pb2.FINISH_REASON_LENGTH,
}
_ARITHMETICS: Final[dict[Compute, attention_pb2.Arithmetic.ValueType]] = {
    "exact": attention_pb2.ARITHMETIC_EXACT,
    "fast": attention_pb2.ARITHMETIC_FAST,
    "reference": attention_pb2.ARITHMETIC_REFERENCE,
}
_GRAMMAR_KINDS: Final[dict[int, GrammarKind]] = {
    types_pb2.Grammar.KIND_LARK: "lark",
    types_pb2.Grammar.KIND_JSON_SCHEMA: "json_schema",
}
_PRIORITIES: Final[dict[int, Priority]] = {
    types_pb2.PRIORITY_UNSPECIFIED: Priority.STANDARD,
    types_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    types_pb2.PRIORITY_STANDARD: Priority.STANDARD,
    types_pb2.PRIORITY_BATCH: Priority.BATCH,
}

Requests = AsyncIterator[attention_pb2.SessionRequest]


class AttentionServicer(attention_pb2_grpc.AttentionServiceServicer):
    """Serves routers."""

    def __init__(self, worker: AttentionWorker) -> None:
        self._worker = worker

    def register(self, server: grpc.aio.Server) -> None:
        """Add this service to a server."""
        attention_pb2_grpc.add_AttentionServiceServicer_to_server(self, server)

    async def Session(  # noqa: N802
        self,
        request_iterator: Requests,
        context: object,  # noqa: ARG002
    ) -> AsyncIterator[attention_pb2.SessionResponse]:
        """Multiplex the sequences of one router."""
        session = self._worker.sessions.open()
        reader = asyncio.create_task(self._read(request_iterator, session))
        reader.add_done_callback(lambda task: _end_on_failure(task, session))
        try:
            while (output := await session.take()) is not None:
                yield to_response(output)
        finally:
            reader.cancel()
            self._worker.sessions.close(session)

    async def Info(  # noqa: N802
        self,
        request: attention_pb2.InfoRequest,  # noqa: ARG002
        context: object,  # noqa: ARG002
    ) -> attention_pb2.InfoResponse:
        """Report model, capacity and load."""
        info = self._worker.info()
        return attention_pb2.InfoResponse(
            model=info.version,
            digest=info.digest,
            adapters=info.adapters,
            max_context_tokens=info.max_context,
            position_parameters=info.position_parameters,
            num_blocks=info.num_blocks,
            num_free_blocks=info.num_free_blocks,
            block_size_tokens=info.block_size,
            num_running=info.num_running,
            num_waiting=info.num_waiting,
            is_disaggregated=info.is_disaggregated,
            vocab_size=info.vocab_size,
            vocabulary_digest=info.vocabulary_digest,
            backlog_tokens=info.backlog_tokens,
            arithmetic=_ARITHMETICS[info.compute],
            is_batch_independent=info.is_batch_independent,
        )

    async def Drain(  # noqa: N802
        self,
        request: attention_pb2.DrainRequest,
        context: object,  # noqa: ARG002
    ) -> attention_pb2.DrainResponse:
        """Stop admission and wait for running sequences."""
        grace_s = to_seconds(request.grace)
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise InvalidArgument(
                f"The grace is {grace_s:g} s; it is 0 to {MAX_GRACE_S:g} s.", {"field": "grace"}
            )
        num_unfinished = await self._worker.drain(grace_s)
        return attention_pb2.DrainResponse(num_unfinished=num_unfinished)

    async def _read(self, requests: Requests, session: sessions.Session) -> None:
        async with asyncio.TaskGroup() as admissions:
            async for request in requests:
                if request.HasField("submit"):
                    submit = request.submit
                    key = session.begin(submit.sequence_id)
                    admissions.create_task(self._admit(session, key, submit))
                elif request.HasField("cancel"):
                    session.cancel(request.cancel.sequence_id)
                else:
                    raise InvalidArgument("A session request holds a submit or a cancel.")
                await session.wait_for_room()
        session.half_close()

    async def _admit(
        self, session: sessions.Session, key: SequenceKey, submit: attention_pb2.Submit
    ) -> None:
        try:
            submission = to_submission(key, submit, self._worker.max_context)
            grammar = to_grammar(submit)
        except UnderstudyError as error:
            session.fail(key.sequence_id, error)
            return
        await self._worker.admit(session, submission, grammar)


def to_submission(key: SequenceKey, submit: attention_pb2.Submit, max_context: int) -> Submission:
    """Return the domain form of a submit; its values are checked by `admission`.

    Raises InvalidArgument for a priority that this worker does not know.
    """
    if submit.priority not in _PRIORITIES:
        raise InvalidArgument(
            f"The priority {submit.priority} is not known to this worker.", {"field": "priority"}
        )
    sampling = submit.sampling
    time_left_s = MAX_SEQUENCE_S
    if submit.HasField("time_left"):
        time_left_s = min(MAX_SEQUENCE_S, to_seconds(submit.time_left))
    default_tokens = min(DEFAULT_MAX_TOKENS, max_context)
    return Submission(
        key=key,
        tokens=tuple(submit.tokens),
        num_committed=submit.committed_tokens,
        params=DecodingParams(
            max_tokens=sampling.max_tokens if sampling.HasField("max_tokens") else default_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
            top_k=sampling.top_k,
            seed=sampling.seed,
            stop=tuple(sampling.stop),
            ignore_eos=sampling.ignore_eos,
        ),
        adapter=submit.adapter,
        deadline_s=time.monotonic() + time_left_s,
        kv_root=submit.kv_root,
        tenant=submit.tenant,
        traceparent=submit.traceparent,
        priority=_PRIORITIES[submit.priority],
    )


def to_grammar(submit: attention_pb2.Submit) -> GrammarSource | None:
    """Return the grammar's source. Raises InvalidArgument when its hash is not the one sent."""
    if not submit.HasField("grammar"):
        return None
    grammar = submit.grammar
    if grammar.kind not in _GRAMMAR_KINDS:
        raise InvalidArgument(
            f"The grammar has the unknown kind {grammar.kind}.", {"field": "grammar.kind"}
        )
    source = GrammarSource(_GRAMMAR_KINDS[grammar.kind], grammar.source)
    if source.hash != grammar.hash:
        raise InvalidArgument(
            "The grammar's hash is not that of its source; both ends must agree.",
            {"field": "grammar.hash"},
        )
    return source


def to_response(output: StepOutput) -> attention_pb2.SessionResponse:
    """Return the wire form of a step."""
    return attention_pb2.SessionResponse(
        step=output.step,
        tokens=[_tokens(run) for run in output.tokens],
        finished=[_finished(finished) for finished in output.finished],
        failed=[_failed(failed) for failed in output.failed],
    )


def _tokens(run: TokenRun) -> attention_pb2.SequenceTokens:
    return attention_pb2.SequenceTokens(
        sequence_id=run.sequence_id,
        token_ids=run.token_ids,
        logprobs=run.logprobs,
        margins=run.margins,
        mask_losses=run.mask_losses,
        is_forced=run.is_forced,
    )


def _finished(finished: Finished) -> attention_pb2.SequenceFinished:
    return attention_pb2.SequenceFinished(
        sequence_id=finished.sequence_id,
        finish_reason=_FINISH_REASONS[finished.reason],
        local_cached_tokens=finished.local_cached_tokens,
        remote_cached_tokens=finished.remote_cached_tokens,
        computed_positions=finished.computed_positions,
    )


def _failed(failed: Failed) -> attention_pb2.SequenceFailed:
    return attention_pb2.SequenceFailed(
        sequence_id=failed.sequence_id, status=error_to_proto(failed.error)
    )


def _end_on_failure(reader: asyncio.Task[None], session: sessions.Session) -> None:
    """End a session whose commands can no longer be read: a broken protocol, or a bug."""
    if reader.cancelled() or (error := reader.exception()) is None:
        return
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, UnderstudyError):
        logger.error("Reading a session's commands failed.", exc_info=error)
        error = Internal("internal error")
    session.cancel_all()
    session.end(error)
