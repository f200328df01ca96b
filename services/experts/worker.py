"""The expert worker itself: admits frames, computes sums, answers every frame exactly once."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from services.experts.batching import ComputeThread, Work, now_ns
from services.experts.executors import Executor, InProcess
from services.experts.holdings import Holdings
from services.experts.metrics import ExpertsMetrics
from services.experts.spans import SpanAggregator
from understudy.errors import InvalidArgument, Unavailable, UnderstudyError
from understudy.exchange.frame import Frame, FrameStatus, FrameType, Header
from understudy.exchange.parts import split_message
from understudy.exchange.tensors import (
    ServerTimes,
    error_pieces,
    read_request,
    reply_pieces,
)

log = logging.getLogger(__name__)

SWEEP_S: Final = 5.0
MAX_EPOCH_LEAD: Final = 24 * 3600 * 1000
"""Epochs grow with the controller's clock in milliseconds; one a day ahead is an error."""


class ExpertWorker:
    """Answers frames from the holdings; remembers only the newest placement epoch it saw."""

    def __init__(
        self,
        holdings: Holdings,
        *,
        num_credits: int,
        metrics: ExpertsMetrics,
        spans: SpanAggregator,
        executor: Executor | None = None,
    ) -> None:
        """Compute in this process unless an `executor` is given."""
        self.holdings = holdings
        self._executor = InProcess(holdings) if executor is None else executor
        self.num_credits = num_credits
        self._metrics = metrics
        self._spans = spans
        self._epoch = 0
        self._is_draining = False
        self._unanswered = 0
        self._changed = threading.Condition()
        self._thread = ComputeThread(self._run_batch)

    @property
    def num_unanswered(self) -> int:
        """Frames admitted and not yet answered."""
        return self._unanswered

    def start(self) -> None:
        """Start the compute thread."""
        self._thread.start()

    def close(self) -> None:
        """Answer what is queued and stop."""
        self._thread.close()
        self._spans.close()

    def drain(self) -> None:
        """Refuse new frames from now on; those admitted are still answered."""
        self._is_draining = True

    def wait_answered(self, timeout_s: float) -> None:
        """Return when every admitted frame is answered, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._unanswered == 0, timeout_s)

    async def sweep(self) -> None:
        """Close the spans of silent attempts, for ever; a task beside the server."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self._spans.close_idle()

    def end_all_traces(self) -> None:
        """Close every span, while there is still somebody to export it to."""
        self._spans.close()

    def end_traces(self, frame: Frame) -> None:
        """Close the spans of the attempts that a TRACE_END names."""
        self._spans.end(frame)

    def admit(self, frame: Frame, answer: Callable[[list[bytes]], None]) -> None:
        """Queue a whole request message, or answer at once why not; never raises."""
        try:
            refusal = self._refusal(frame.header)
            if refusal is None:
                with self._changed:
                    self._unanswered += 1
                self._metrics.in_flight.inc()
                self._thread.put(Work(frame, now_ns(), answer))
                return
            status, sentence = refusal
        except UnderstudyError as error:
            status, sentence = FrameStatus.MALFORMED, error.message
        answer(self.refuse(frame.header, status, sentence))

    def refuse(self, header: Header, status: FrameStatus, sentence: str) -> list[bytes]:
        """Return the frames that refuse a request, and count and log it."""
        self._metrics.frames.labels(status=status.name.lower()).inc()
        level = logging.WARNING if status == FrameStatus.MALFORMED else logging.DEBUG
        log.log(level, "Refused a frame: %s", sentence, extra={"frame_status": status.name})
        reply = header._replace(
            type=FrameType.REPLY, status=status, epoch=max(self._epoch, header.epoch), num_traces=0,
            num_tokens=0, part=0, parts=1, message_bytes=0,
        )  # fmt: skip
        return split_message(reply, error_pieces(sentence))

    def _refusal(self, header: Header) -> tuple[FrameStatus, str] | None:
        if self._is_draining:
            return FrameStatus.DRAINING, "This expert worker is draining; use another replica."
        self.holdings.check_shape(header)
        if header.epoch < self._epoch:
            return (
                FrameStatus.STALE_EPOCH,
                f"The frame goes by epoch {header.epoch}; the newest seen here is {self._epoch}.",
            )
        if header.epoch > int(time.time() * 1000) + MAX_EPOCH_LEAD:
            raise InvalidArgument(f"The frame's epoch {header.epoch} lies in the future.")
        if not self.holdings.holds(header):
            return (
                FrameStatus.NOT_HELD,
                f"Layer {header.layer}, shards from {header.first_shard} on, is not held here.",
            )
        self._epoch = header.epoch
        return None

    def _run_batch(self, batch: list[Work]) -> None:
        self._metrics.batch_frames.observe(len(batch))
        for work in batch:
            work.answer(self._compute(work))
            self._metrics.in_flight.dec()
            with self._changed:
                self._unanswered -= 1
                self._changed.notify_all()

    def _compute(self, work: Work) -> list[bytes]:
        header = work.frame.header
        started_ns = now_ns()
        self._metrics.queue_wait.observe((started_ns - work.received_ns) / 1e9)
        if started_ns > work.deadline_ns:
            return self.refuse(header, FrameStatus.EXPIRED, "Its time had passed in the queue.")
        try:
            request = read_request(work.frame)
            self.holdings.check_experts(request)
            remaining_s = (work.deadline_ns - started_ns) / 1e9
            computed = self._executor.compute(header, request, remaining_s)
        except Unavailable as error:
            return self.refuse(header, FrameStatus.FAILED, error.message)
        except UnderstudyError as error:
            return self.refuse(header, FrameStatus.MALFORMED, error.message)
        except Exception:  # the engine loop: one bad frame must not end the worker
            log.exception("Computing layer %d failed.", header.layer)
            return self.refuse(header, FrameStatus.FAILED, "The computation failed; see the log.")
        finished_ns = now_ns()
        self._metrics.compute.observe((finished_ns - started_ns) / 1e9)
        self._metrics.rows.inc(header.num_tokens * header.num_shards)
        self._metrics.frames.labels(status="ok").inc()
        self._metrics.executed.labels(place=computed.place).inc()
        self._spans.add(request.traces, header, finished_ns - started_ns,
                        is_from_triton=computed.place == "triton")  # fmt: skip
        reply = header._replace(type=FrameType.REPLY, num_traces=0, num_choices=0)
        times = ServerTimes(work.received_ns, started_ns, finished_ns, now_ns())
        return split_message(reply, reply_pieces(times, computed.total))
