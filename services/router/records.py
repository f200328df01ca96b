"""Events and decisions as journal records, and what a list of records says of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from services.router.answers import Attempt, Decision, Delta, Finished, Reason, Usage
from services.router.journal import Record
from services.router.policy import Path
from services.router.requests import Request, ToolCall, request_from_json
from understudy.errors import FailedPrecondition
from understudy.workloads import Verdict


@dataclass(slots=True)
class Replay:
    """How far an answer had come."""

    request: Request
    request_id: str
    trial: Attempt | None = None
    """The SLM's attempt that was refused."""
    trial_reason: Reason | None = None
    """Why it was refused."""
    path: Path | None = None
    """The pool that answers, once that is settled."""
    deltas: list[Delta] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    """Tokens behind the deltas of a streamed answer."""
    finished: Finished | None = None


def attempt_record(attempt: Attempt, reason: Reason) -> Record:
    """Note an attempt of the SLM that was refused, and why."""
    return {"kind": "attempt", "attempt": asdict(attempt), "reason": reason}


def path_record(path: Path) -> Record:
    """Note the pool whose answer stands, before anything of it is committed."""
    return {"kind": "path", "pool": path.pool, "reason": path.reason}


def delta_record(delta: Delta, token_ids: Sequence[int]) -> Record:
    """Note a piece of the answer with the tokens since the last one."""
    return {
        "kind": "delta",
        "text": delta.text,
        "tool_calls": [asdict(call) for call in delta.tool_calls],
        "token_ids": list(token_ids),
    }


def lost_record() -> Record:
    """Note that what was shown cannot be continued: who asks again gets another answer."""
    return {"kind": "lost"}


def finished_record(finished: Finished) -> Record:
    """Note the end."""
    return {"kind": "finished", "finished": asdict(finished)}


def replay(records: Sequence[Record]) -> Replay:
    """Read an entry; FailedPrecondition when another release wrote it differently."""
    try:
        head = records[0]
        found = Replay(request_from_json(head["request"]), str(head["request_id"]))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise _foreign(error) from error
    extend(found, records[1:])
    return found


def extend(found: Replay, records: Sequence[Record]) -> None:
    """Apply further records of an entry; FailedPrecondition as in `replay`."""
    try:
        for record in records:
            _apply(found, record)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise _foreign(error) from error


def _foreign(error: Exception) -> FailedPrecondition:
    return FailedPrecondition(
        f"The journal entry was written by a release with another format: {error!r}."
    )


def _apply(found: Replay, record: Record) -> None:
    match record["kind"]:
        case "attempt":
            found.trial = _attempt(record["attempt"])
            found.trial_reason = record["reason"]
        case "path":
            found.path = Path(record["pool"], record["reason"])
        case "delta":
            calls = tuple(ToolCall(**call) for call in record["tool_calls"])
            found.deltas.append(Delta(len(found.deltas), record["text"], calls))
            found.token_ids.extend(record["token_ids"])
        case "lost":
            found.path = found.trial = found.trial_reason = None
            found.deltas, found.token_ids = [], []
        case "finished":
            found.finished = _finished(record["finished"])
        case kind:
            raise ValueError(f"unknown record {kind!r}")


def _attempt(body: dict[str, Any]) -> Attempt:
    verdicts = tuple(Verdict(**verdict) for verdict in body["verdicts"])
    usage, gaps = Usage(**body["usage"]), tuple(body.get("gaps", ()))
    return Attempt(**{**body, "usage": usage, "verdicts": verdicts, "gaps": gaps})


def _finished(body: dict[str, Any]) -> Finished:
    decision = dict(body["decision"])
    reason: Reason = decision.pop("reason")
    attempts = tuple(_attempt(attempt) for attempt in decision.pop("attempts"))
    return Finished(
        body["finish_reason"],
        Usage(**body["usage"]),
        Decision(reason=reason, attempts=attempts, **decision),
    )
