"""An attention worker that says what a test tells it to, over real gRPC, without a model.

    worker = FakeAttention(tiny_tokenizer(), reply=lambda submit: FakeReply("Hello."))
    address = await worker.start()
    ...
    assert worker.submissions[0].tenant == "default"
    await worker.stop()

It keeps the promises of `AttentionService.Session` that routers rely on: one message per token,
continuation after committed tokens, limits, cancellation, failures per sequence and of the stream.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from understudy.api.attention.v1 import attention_pb2, attention_pb2_grpc
from understudy.api.types.v1 import types_pb2
from understudy.errors import Unavailable, UnderstudyError
from understudy.rpc import error_to_proto
from understudy.text.tokenizer import Tokenizer

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class FakeReply:
    """What one sequence does."""

    text: str = "Hello."
    """Its output, followed by end-of-sequence."""
    margin: float = 0.9
    """Margin of every free token."""
    mask_loss: float = 0.0
    """Mask loss of every free token."""
    num_forced: int = 0
    """Tokens at the beginning that count as forced."""
    cached_tokens: int = 0
    """Prompt tokens it says to have found in its blocks."""
    hold_after: int | None = None
    """Output tokens after which it waits for `FakeAttention.release`."""
    fail_after: int | None = None
    """Output tokens after which it fails with `error`."""
    error: UnderstudyError = field(default_factory=lambda: Unavailable("The worker is draining."))
    """Named failure of the sequence."""
    break_after: int | None = None
    """Output tokens after which the whole stream breaks."""


Reply = Callable[[attention_pb2.Submit], FakeReply]


class FakeAttention(attention_pb2_grpc.AttentionServiceServicer):
    """One worker; `reply` decides per submission."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        reply: Reply = lambda _: FakeReply(),
        model: str = "fake-llm@00000000",
        position_parameters: int = 1000,
        max_context_tokens: int = 4096,
        adapters: tuple[str, ...] = (),
    ) -> None:
        self.reply = reply
        self.submissions: list[attention_pb2.Submit] = []
        self.cancelled: list[int] = []
        self._tokenizer = tokenizer
        self._info = attention_pb2.InfoResponse(
            model=model,
            digest=hashlib.sha256(model.encode()).digest(),
            adapters=adapters,
            max_context_tokens=max_context_tokens,
            position_parameters=position_parameters,
            num_blocks=256,
            num_free_blocks=256,
            block_size_tokens=16,
            vocab_size=tokenizer.vocab_size,
            vocabulary_digest=tokenizer.vocabulary_digest,
            arithmetic=attention_pb2.ARITHMETIC_EXACT,
            is_batch_independent=True,
        )
        self._released = asyncio.Event()
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self._port = 0

    async def start(self) -> str:
        """Listen on loopback and return the address; a stopped worker returns to its old port."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        attention_pb2_grpc.add_AttentionServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(
            health.aio.HealthServicer(),  # type: ignore[attr-defined]
            self._server,
        )
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        await self._server.start()
        return f"127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Die: connections break, sequences are lost."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def release(self) -> None:
        """Let sequences that hold go on."""
        self._released.set()

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Return once a condition over submissions and cancellations holds."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(condition)

    async def Info(  # noqa: N802
        self,
        request: attention_pb2.InfoRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> attention_pb2.InfoResponse:
        """Report what the test set."""
        return self._info

    async def Session(  # noqa: N802
        self,
        request_iterator: AsyncIterator[attention_pb2.SessionRequest],
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[attention_pb2.SessionResponse]:
        """Run sequences side by side."""
        outputs: asyncio.Queue[attention_pb2.SessionResponse | UnderstudyError] = asyncio.Queue()
        reader = asyncio.create_task(self._read(request_iterator, outputs))
        step = 0
        try:
            while True:
                output = await outputs.get()
                if isinstance(output, UnderstudyError):
                    raise output
                step += 1
                output.step = step
                yield output
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(
        self,
        requests: AsyncIterator[attention_pb2.SessionRequest],
        outputs: asyncio.Queue[attention_pb2.SessionResponse | UnderstudyError],
    ) -> None:
        running: dict[int, asyncio.Task[None]] = {}
        try:
            async for request in requests:
                if request.HasField("submit"):
                    submit = request.submit
                    running[submit.sequence_id] = asyncio.create_task(self._run(submit, outputs))
                    await self._note(lambda found=submit: self.submissions.append(found))  # type: ignore[misc]
                else:
                    sequence_id = request.cancel.sequence_id
                    if (task := running.pop(sequence_id, None)) is not None:
                        task.cancel()
                    await self._note(lambda found=sequence_id: self.cancelled.append(found))  # type: ignore[misc]
        finally:
            for task in running.values():
                task.cancel()

    async def _note(self, change: Callable[[], None]) -> None:
        async with self._changed:
            change()
            self._changed.notify_all()

    async def _run(
        self,
        submit: attention_pb2.Submit,
        outputs: asyncio.Queue[attention_pb2.SessionResponse | UnderstudyError],
    ) -> None:
        reply = self.reply(submit)
        ids = [*self._tokenizer.encode(reply.text), self._tokenizer.eos_ids[0]]
        limit = submit.sampling.max_tokens
        is_cut = len(ids) > limit
        for index in range(submit.committed_tokens, min(len(ids), limit) + 1):
            if reply.hold_after == index:
                await self._released.wait()
            if reply.fail_after == index:
                outputs.put_nowait(_failure(submit.sequence_id, reply.error))
                return
            if reply.break_after == index:
                outputs.put_nowait(Unavailable("The worker is gone."))
                return
            if index < min(len(ids), limit):
                outputs.put_nowait(_token(submit.sequence_id, ids[index], index, reply))
        outputs.put_nowait(_end(submit, len(ids[:limit]), reply, is_cut=is_cut))


def _token(
    sequence_id: int, token_id: int, index: int, reply: FakeReply
) -> attention_pb2.SessionResponse:
    is_forced = index < reply.num_forced
    tokens = attention_pb2.SequenceTokens(
        sequence_id=sequence_id,
        token_ids=[token_id],
        logprobs=[0.0 if is_forced else -0.01],
        margins=[1.0 if is_forced else reply.margin],
        mask_losses=[0.0 if is_forced else reply.mask_loss],
        is_forced=[is_forced],
    )
    return attention_pb2.SessionResponse(tokens=[tokens])


def _end(
    submit: attention_pb2.Submit, num_output: int, reply: FakeReply, *, is_cut: bool
) -> attention_pb2.SessionResponse:
    num_prompt = len(submit.tokens) - submit.committed_tokens
    finished = attention_pb2.SequenceFinished(
        sequence_id=submit.sequence_id,
        finish_reason=types_pb2.FINISH_REASON_LENGTH if is_cut else types_pb2.FINISH_REASON_STOP,
        local_cached_tokens=reply.cached_tokens,
        computed_positions=num_prompt + num_output - reply.cached_tokens,
    )
    return attention_pb2.SessionResponse(finished=[finished])


def _failure(sequence_id: int, error: UnderstudyError) -> attention_pb2.SessionResponse:
    failed = attention_pb2.SequenceFailed(sequence_id=sequence_id, status=error_to_proto(error))
    return attention_pb2.SessionResponse(failed=[failed])
