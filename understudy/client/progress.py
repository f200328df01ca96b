"""The life of one answer as a state machine without I/O: open, receive, fail, resume, finish.

Both clients drive it the same way:

    step = progress.next_step()          which call to open now, and its deadline
    event = progress.receive(message)    what the caller sees of a message (None: seen before)
    delay_s = progress.fail(error)       how long to wait before the next step, or raises
    progress.is_finished                 `Finished` came; nothing more is expected

A stream that breaks before its first delta is opened again under the same idempotency key, which
the router answers once; later it is resumed from the deltas at hand. Where the router gave no
resume token, a stream that broke after its first delta fails, because text was already committed.
"""

from dataclasses import dataclass

from understudy.api.router.v1 import router_pb2
from understudy.client.events import StreamMessage, to_delta, to_finished, to_started
from understudy.client.results import Answer, Delta, Event, Finished, Started, ToolCall
from understudy.client.retries import Tries
from understudy.errors import Internal, NotFound, Unavailable, UnderstudyError


@dataclass(frozen=True, slots=True)
class Step:
    """The call to open next; `timeout_s` is what is left of the caller's time."""

    request: router_pb2.GenerateRequest | router_pb2.ResumeRequest
    timeout_s: float


class Progress:
    """What is known of one answer so far."""

    def __init__(self, request: router_pb2.GenerateRequest, tries: Tries) -> None:
        self._request = request
        self._tries = tries
        self._has_started = False
        self._resume_token = ""
        self._texts: list[str] = []
        self._tool_calls: list[ToolCall] = []
        self._finished: Finished | None = None

    @property
    def request_id(self) -> str:
        """The id under which the platform knows this request."""
        return self._tries.request_id

    @property
    def is_finished(self) -> bool:
        """Whether the last event came."""
        return self._finished is not None

    def next_step(self) -> Step:
        """Return the call to open; raises DeadlineExceeded when the caller's time is over."""
        timeout_s = self._tries.time_left_s()
        if not self._resume_token:
            return Step(self._request, timeout_s)
        resume = router_pb2.ResumeRequest(
            resume_token=self._resume_token, received_deltas=len(self._texts)
        )
        return Step(resume, timeout_s)

    def receive(self, message: StreamMessage) -> Event | None:
        """Take one message; returns the event the caller has not seen yet, if it is one."""
        kind = message.WhichOneof("event")
        if kind == "started":
            return self._receive_started(to_started(message.started))
        if kind == "delta":
            return self._receive_delta(to_delta(message.delta))
        if kind == "finished":
            self._finished = to_finished(message.finished)
            return self._finished
        return None

    def fail(self, error: UnderstudyError) -> float:
        """Return the wait before the next step; raises the named error when no step can help."""
        if isinstance(error, NotFound) and self._resume_token and not self._texts:
            self._resume_token = ""
            return self._tries.fail(error, is_repeatable=True)
        if isinstance(error, Unavailable) and self._texts and not self._resume_token:
            raise self._tries.named(_unresumable(len(self._texts))) from error
        return self._tries.fail(error)

    def end_early(self) -> float:
        """Return the wait before the next step after a stream that ended without `Finished`."""
        return self.fail(Unavailable("The stream ended before the answer did."))

    def named(self, error: UnderstudyError) -> UnderstudyError:
        """Give an error this request's id."""
        return self._tries.named(error)

    def answer(self) -> Answer:
        """Put the finished answer together."""
        assert self._finished is not None, "answer() is called after the last event"
        return Answer(
            request_id=self.request_id,
            text="".join(self._texts),
            tool_calls=tuple(self._tool_calls),
            finish_reason=self._finished.finish_reason,
            usage=self._finished.usage,
            decision=self._finished.decision,
        )

    def _receive_started(self, started: Started) -> Started | None:
        is_first = not self._has_started
        self._has_started = True
        self._resume_token = started.resume_token
        if started.request_id:
            self._tries.request_id = started.request_id
        return started if is_first else None

    def _receive_delta(self, delta: Delta) -> Delta | None:
        self._tries.succeed()
        expected = len(self._texts)
        if delta.index < expected:
            return None
        if delta.index > expected:
            message = f"The router sent delta {delta.index} where {expected} was next."
            raise self._tries.named(Internal(message))
        self._texts.append(delta.text)
        self._tool_calls.extend(delta.tool_calls)
        return delta


def _unresumable(received_deltas: int) -> Unavailable:
    return Unavailable(
        f"The stream broke after {received_deltas} deltas and cannot be resumed, because the "
        "router had no journal for it; send the request again."
    )
