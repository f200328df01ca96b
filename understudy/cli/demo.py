"""The whole platform at work in one command: start, ask, show, stop."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from understudy.cli.evaluation import LLM, arm_progress, run_arm
from understudy.cli.figures import Evaluation, evaluate, percentile
from understudy.cli.startup import private_platform
from understudy.cli.tables import chats_table, outcomes_table, print_failures
from understudy.cli.traffic import Outcome, Target, send_chats
from understudy.cli.waterfall import COMPLETE, await_trace, service_families, show_trace
from understudy.client import Answer
from understudy.errors import UnderstudyError
from understudy.local.platform import Platform
from understudy.local.traces import Trace
from understudy.local.triton.share import triton_share
from understudy.workloads import find_workload
from understudy.workloads.snips.dataset import load_split

NUM_ROWS: Final = 60
CONCURRENCY: Final = 8
TIMEOUT_S: Final = 120.0
CHATS: Final = (
    "In one sentence: what is an understudy in a theatre?",
    "Name three uses of a paper clip.",
    "Why is the sky blue? Answer briefly.",
)
CHAT_TOKENS: Final = 40
_TRACE_WAIT_S: Final = 15.0
_MAX_CANDIDATES: Final = 8


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What `out/demo.json` holds: the routed requests, and the LLM alone on the same utterances.

    `failed` counts failures of both arms; `cost_ratio` is measured over the utterances.
    """

    requests: int
    failed: int
    answered_by_slm: int
    escalated: int
    exact_match: float
    llm_only_exact_match: float
    cost_ratio: float
    p50_s: float
    services_in_trace: list[str]


@dataclass(frozen=True, slots=True)
class Chats:
    """Answers of the chat prompts, and sentences of those that failed."""

    answers: tuple[tuple[str, Answer], ...]
    failures: tuple[str, ...]


def run_demo(console: Console, out: Path) -> DemoReport:
    """Run the demonstration and write its report and trace; the platform is stopped at the end."""
    rows = load_split("dev")[:NUM_ROWS]
    workload = find_workload("snips")
    with private_platform(console, "demo") as platform:
        target = Target(platform.grpc_address, None, CONCURRENCY, TIMEOUT_S)
        routed = run_arm(console, target, workload, rows, "auto")
        alone = run_arm(console, target, workload, rows, LLM)
        chats = _chat(console, target)
        trace = _escalated_trace(platform, routed, chats)
        share = triton_share(platform.state)
        console.print()
        console.print(outcomes_table(routed, alone))
        console.print()
        console.print(chats_table(chats.answers))
        console.print()
        if trace is not None:
            show_trace(trace, console, out / "trace.html")
    report = make_report(routed, alone, chats, trace)
    print_failures(console, [*routed, *alone], chats.failures)
    _print_summary(console, report, evaluate(routed, alone), evaluate(alone, alone))
    if share is not None:
        console.print(str(share), style="bold", highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(json.dumps(asdict(report), indent=2) + "\n", "utf-8")
    return report


def make_report(
    routed: Sequence[Outcome], alone: Sequence[Outcome], chats: Chats, trace: Trace | None
) -> DemoReport:
    """Put the report together."""
    ours, theirs = evaluate(routed, alone), evaluate(alone, alone)
    decisions = [outcome.decision for outcome in routed if outcome.decision is not None]
    decisions += [answer.decision for _, answer in chats.answers]
    durations = sorted(outcome.duration_s for outcome in routed if outcome.decision is not None)
    return DemoReport(
        requests=len(routed) + len(chats.answers) + len(chats.failures),
        failed=ours.failed + theirs.failed + len(chats.failures),
        answered_by_slm=sum(decision.pool == "slm" for decision in decisions),
        escalated=sum(decision.is_escalated for decision in decisions),
        exact_match=ours.exact_match,
        llm_only_exact_match=theirs.exact_match,
        cost_ratio=ours.cost_ratio_to_llm_only,
        p50_s=percentile(durations, 0.5),
        services_in_trace=service_families(trace) if trace is not None else [],
    )


def _chat(console: Console, target: Target) -> Chats:
    with arm_progress(console) as progress:
        task = progress.add_task(f"{len(CHATS)} chats", total=len(CHATS), failed="")
        came = asyncio.run(send_chats(target, CHATS, CHAT_TOKENS, lambda: progress.advance(task)))
    answers = zip(CHATS, came, strict=True)
    return Chats(
        answers=tuple((prompt, one) for prompt, one in answers if isinstance(one, Answer)),
        failures=tuple(one.message for one in came if isinstance(one, UnderstudyError)),
    )


def _escalated_trace(platform: Platform, routed: Sequence[Outcome], chats: Chats) -> Trace | None:
    """Return the trace of an escalated request; of an LLM answer where none was escalated."""
    decisions = [outcome.decision for outcome in routed if outcome.decision is not None]
    chosen = [d for d in decisions if d.is_escalated] or [a.decision for _, a in chats.answers]
    ids = [decision.trace_id for decision in chosen if decision.trace_id][:_MAX_CANDIDATES]
    return await_trace(platform.traces, ids, COMPLETE, _TRACE_WAIT_S)


def _print_summary(
    console: Console, report: DemoReport, ours: Evaluation, theirs: Evaluation
) -> None:
    alone = f"the LLM alone: {100 * theirs.exact_match:.0f} %"
    lines = (
        f"{report.requests} requests, {report.failed} failed; the SLM answered"
        f" {report.answered_by_slm}, {report.escalated} were escalated to the LLM.\n"
        f"Exact match {100 * ours.exact_match:.0f} % ({alone})"
        f" at {100 * report.cost_ratio:.0f} % of its cost.\n"
        f"Half of the answers came within {ours.p50_s:.2f} s (the LLM alone: {theirs.p50_s:.2f} s),"
        f" {CONCURRENCY} at a time."
    )
    console.print()
    console.print(lines, style="bold", highlight=False)
