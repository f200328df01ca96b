"""Connections to attention workers: one `Session` stream each, shared by all sequences.

A session opens with the first sequence after a break. When it breaks, every sequence on it fails
as Unavailable and is placed again by its attempt; nothing is retried here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

import grpc
from google.protobuf.duration_pb2 import Duration

from services.router.answers import FinishReason
from services.router.pools import Ended, Submission, Tokens, WorkerInfo
from understudy.api.attention.v1 import attention_pb2, attention_pb2_grpc
from understudy.api.types.v1 import types_pb2
from understudy.errors import Unavailable, UnderstudyError
from understudy.rpc import Peer, error_from_proto, from_rpc_error, open_channel

INFO_INTERVAL_S: Final = 1.0
INFO_TIMEOUT_S: Final = 5.0
_RECONNECT_S: Final = 0.1

_KINDS: Final = {
    "lark": types_pb2.Grammar.KIND_LARK,
    "json_schema": types_pb2.Grammar.KIND_JSON_SCHEMA,
}
_PRIORITIES: Final = {
    "interactive": types_pb2.PRIORITY_INTERACTIVE,
    "standard": types_pb2.PRIORITY_STANDARD,
    "batch": types_pb2.PRIORITY_BATCH,
}

logger = logging.getLogger(__name__)

_Call = grpc.aio.StreamStreamCall[attention_pb2.SessionRequest, attention_pb2.SessionResponse]
_Item = Tokens | Ended | UnderstudyError


class RemoteSequence:
    """A sequence on a worker; satisfies `pools.SequenceStream`."""

    def __init__(self, session: Session, sequence_id: int, unread_tokens: int) -> None:
        self._session = session
        self._sequence_id = sequence_id
        self.unread_tokens = unread_tokens
        """Prompt tokens that the worker has to read; 0 from the first token on."""
        # Bounded by the sequence's max_tokens: a worker sends at most one item per token.
        self.mailbox: asyncio.Queue[_Item] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Tokens | Ended]:
        """Yield tokens, then `Ended`; raises the error the sequence failed with."""
        while True:
            item = await self.mailbox.get()
            if isinstance(item, UnderstudyError):
                raise item
            yield item
            if isinstance(item, Ended):
                return

    def cancel(self) -> None:
        """End the sequence at the worker; does nothing once it ended."""
        self._session.cancel(self._sequence_id)


class Session:
    """One open `Session` stream and the sequences on it."""

    def __init__(self, stub: attention_pb2_grpc.AttentionServiceAsyncStub) -> None:
        self._commands: asyncio.Queue[attention_pb2.SessionRequest] = asyncio.Queue()
        self._sequences: dict[int, RemoteSequence] = {}
        self._next_id = 1
        self._idle = asyncio.Event()
        self._idle.set()
        self._call: _Call = stub.Session(self._outgoing())
        self._reader = asyncio.create_task(self._read())
        self.is_open = True

    @property
    def num_active(self) -> int:
        """Sequences that have not ended."""
        return len(self._sequences)

    @property
    def unread_tokens(self) -> int:
        """Prompt tokens of sequences that no token came of yet."""
        return sum(sequence.unread_tokens for sequence in self._sequences.values())

    def submit(self, submission: Submission) -> RemoteSequence:
        """Start a sequence."""
        sequence_id = self._next_id
        self._next_id += 1
        submit = to_submit(sequence_id, submission)
        sequence = self._sequences[sequence_id] = RemoteSequence(
            self, sequence_id, submission.unread_tokens
        )
        self._idle.clear()
        self._commands.put_nowait(attention_pb2.SessionRequest(submit=submit))
        return sequence

    def cancel(self, sequence_id: int) -> None:
        """End a sequence that still runs."""
        if self._drop(sequence_id) is not None and self.is_open:
            cancel = attention_pb2.Cancel(sequence_id=sequence_id)
            self._commands.put_nowait(attention_pb2.SessionRequest(cancel=cancel))

    async def wait_idle(self) -> None:
        """Return once every sequence has ended, or the stream with all of them."""
        await self._idle.wait()

    async def aclose(self) -> None:
        """End the stream and every sequence on it."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._end(Unavailable("The session with the worker was closed."))

    async def _outgoing(self) -> AsyncIterator[attention_pb2.SessionRequest]:
        while True:
            yield await self._commands.get()

    async def _read(self) -> None:
        error: UnderstudyError = Unavailable("The worker ended its session.")
        try:
            async for response in self._call:
                self._deliver(response)
        except grpc.RpcError as broken:
            error = Unavailable(
                f"The session with the worker broke: {from_rpc_error(broken).message}"
            )
        finally:
            self._end(error)

    def _end(self, error: UnderstudyError) -> None:
        self.is_open = False
        self._call.cancel()
        for sequence_id in list(self._sequences):
            self._fail(sequence_id, error)

    def _drop(self, sequence_id: int) -> RemoteSequence | None:
        sequence = self._sequences.pop(sequence_id, None)
        if not self._sequences:
            self._idle.set()
        return sequence

    def _deliver(self, response: attention_pb2.SessionResponse) -> None:
        for tokens in response.tokens:
            if (sequence := self._sequences.get(tokens.sequence_id)) is not None:
                sequence.unread_tokens = 0
                sequence.mailbox.put_nowait(to_tokens(tokens))
        for finished in response.finished:
            if (sequence := self._drop(finished.sequence_id)) is not None:
                sequence.mailbox.put_nowait(to_ended(finished))
        for failed in response.failed:
            self._fail(failed.sequence_id, error_from_proto(failed.status))

    def _fail(self, sequence_id: int, error: UnderstudyError) -> None:
        if (sequence := self._drop(sequence_id)) is not None:
            sequence.mailbox.put_nowait(error)


class WorkerClient:
    """One attention worker; satisfies `pools.Worker`. Run `watch` beside it."""

    def __init__(self, address: str, vocabulary_digest: bytes, peer: Peer | None = None) -> None:
        """Connect lazily; a worker whose token ids mean something else is never used."""
        self.address = address
        self._vocabulary_digest = vocabulary_digest
        self._is_foreign = False
        self.info: WorkerInfo | None = None
        self._channel = open_channel(address, peer=peer)
        self._stub = attention_pb2_grpc.AttentionServiceStub(self._channel)
        self._session: Session | None = None

    @property
    def num_active(self) -> int:
        """Sequences of this router on the worker."""
        return self._session.num_active if self._session else 0

    @property
    def unread_tokens(self) -> int:
        """Prompt tokens of this router's sequences that no token came of yet."""
        return self._session.unread_tokens if self._session else 0

    def submit(self, submission: Submission) -> RemoteSequence:
        """Start a sequence; failures come through its stream."""
        if self._session is None or not self._session.is_open:
            self._session = Session(self._stub)
        return self._session.submit(submission)

    async def watch(self) -> None:
        """Keep `info` fresh until cancelled, and None while the worker cannot serve us."""
        while True:
            try:
                response = await self._stub.Info(
                    attention_pb2.InfoRequest(), timeout=INFO_TIMEOUT_S
                )
                self.info = self._checked(response)
            except grpc.RpcError as error:
                if self.info is not None:
                    logger.warning(
                        "A worker cannot be reached.",
                        extra={"worker": self.address, "cause": from_rpc_error(error).reason},
                    )
                self.info = None
            await asyncio.sleep(_RECONNECT_S if self.info is None else INFO_INTERVAL_S)

    def _checked(self, response: attention_pb2.InfoResponse) -> WorkerInfo | None:
        is_foreign = response.vocabulary_digest != self._vocabulary_digest
        if is_foreign and not self._is_foreign:
            logger.error(
                "A worker's model has another tokenizer than this router and gets no requests.",
                extra={"worker": self.address, "model": response.model},
            )
        self._is_foreign = is_foreign
        return None if is_foreign else to_info(response)

    async def wait_idle(self) -> None:
        """Return once no sequence of this router runs on the worker."""
        if self._session is not None:
            await self._session.wait_idle()

    async def aclose(self) -> None:
        """End the session and close the connection."""
        if self._session is not None:
            await self._session.aclose()
        await self._channel.close(None)


def to_submit(sequence_id: int, submission: Submission) -> attention_pb2.Submit:
    """Return the wire form of a submission."""
    sampling = submission.sampling
    time_left = Duration()
    time_left.FromNanoseconds(int(submission.time_left_s * 1e9))
    grammar = submission.grammar
    return attention_pb2.Submit(
        sequence_id=sequence_id,
        tokens=submission.tokens,
        committed_tokens=submission.num_committed,
        sampling=types_pb2.SamplingParams(
            max_tokens=submission.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
            stop=sampling.stop,
            ignore_eos=sampling.ignore_eos,
        ),
        grammar=None
        if grammar is None
        else types_pb2.Grammar(kind=_KINDS[grammar.kind], source=grammar.source, hash=grammar.hash),
        adapter=submission.adapter,
        time_left=time_left,
        kv_root=submission.kv_root,
        tenant=submission.tenant,
        traceparent=submission.traceparent,
        priority=_PRIORITIES[submission.priority],
    )


def to_tokens(tokens: attention_pb2.SequenceTokens) -> Tokens:
    """Return new tokens as plain data."""
    return Tokens(
        tuple(tokens.token_ids),
        tuple(tokens.logprobs),
        tuple(tokens.margins),
        tuple(tokens.mask_losses),
        tuple(tokens.is_forced),
    )


def to_ended(finished: attention_pb2.SequenceFinished) -> Ended:
    """Return the end of a sequence as plain data."""
    is_length = finished.finish_reason == types_pb2.FINISH_REASON_LENGTH
    reason: FinishReason = "length" if is_length else "stop"
    cached = finished.local_cached_tokens + finished.remote_cached_tokens
    return Ended(reason, cached, finished.computed_positions)


def to_info(response: attention_pb2.InfoResponse) -> WorkerInfo:
    """Return a worker's state as plain data."""
    return WorkerInfo(
        model=response.model,
        digest=response.digest,
        adapters=frozenset(response.adapters),
        max_context_tokens=response.max_context_tokens,
        position_parameters=max(response.position_parameters, 1),
        num_running=response.num_running,
        num_waiting=response.num_waiting,
        backlog_tokens=response.backlog_tokens,
    )
