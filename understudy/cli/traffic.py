"""Many questions at once: rows of a workload sent to a router, each answer judged and timed."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from understudy.client import Answer, AsyncClient, Decision, Tls
from understudy.errors import InvalidArgument, UnderstudyError
from understudy.workloads import ToolCall, Workload
from understudy.workloads.metrics import is_exact_match
from understudy.workloads.snips.dataset import Row


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row; a failed one has no decision and its error's sentence."""

    row: Row
    call: ToolCall | None
    decision: Decision | None
    duration_s: float
    failure: str = ""

    @property
    def is_right(self) -> bool:
        """Whether tool and all arguments are those of the row."""
        return is_exact_match(self.call, self.row.gold)


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask, and how many questions may be under way at once."""

    address: str
    api_key: str | None
    concurrency: int
    timeout_s: float
    tls: Tls | None = None


async def send_rows(
    target: Target,
    workload: Workload,
    rows: Sequence[Row],
    model: str,
    on_outcome: Callable[[Outcome], None],
) -> list[Outcome]:
    """Send every row to `model`, and return the outcomes in the rows' order."""
    turns = asyncio.Semaphore(target.concurrency)

    async def send(client: AsyncClient, row: Row) -> Outcome:
        async with turns:
            outcome = await _send_row(client, workload, row, model, target.timeout_s)
        on_outcome(outcome)
        return outcome

    async with AsyncClient(target.address, api_key=target.api_key, tls=target.tls) as client:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(send(client, row)) for row in rows]
        return [task.result() for task in tasks]


async def send_chats(
    target: Target,
    prompts: Sequence[str],
    max_tokens: int,
    on_answer: Callable[[], None],
) -> list[Answer | UnderstudyError]:
    """Send prompts side by side as conversations of one turn; returns what came, in order."""

    async def send(client: AsyncClient, prompt: str) -> Answer | UnderstudyError:
        messages = [{"role": "user", "content": prompt}]
        try:
            return await client.complete(
                messages=messages, max_tokens=max_tokens, timeout_s=target.timeout_s
            )
        except UnderstudyError as error:
            return error
        finally:
            on_answer()

    async with AsyncClient(target.address, api_key=target.api_key, tls=target.tls) as client:
        return list(await asyncio.gather(*(send(client, prompt) for prompt in prompts)))


async def _send_row(
    client: AsyncClient, workload: Workload, row: Row, model: str, timeout_s: float
) -> Outcome:
    started_at = time.monotonic()
    try:
        answer = await client.complete(
            messages=[{"role": "user", "content": row.text}],
            tools=workload.tools,
            workload=workload.name,
            model=model,
            timeout_s=timeout_s,
        )
    except UnderstudyError as error:
        return Outcome(row, None, None, time.monotonic() - started_at, error.message)
    duration_s = time.monotonic() - started_at
    return Outcome(row, read_call(workload, answer), answer.decision, duration_s)


def read_call(workload: Workload, answer: Answer) -> ToolCall | None:
    """Return the answer's call; None where it is not exactly one that the workload accepts."""
    if len(answer.tool_calls) != 1:
        return None
    call = answer.tool_calls[0]
    try:
        text = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        return workload.parse(text)
    except (ValueError, InvalidArgument):
        return None
