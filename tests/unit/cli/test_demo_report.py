"""The demonstration's report, and the tables it prints."""

import io

from rich.console import Console

from understudy.cli.demo import Chats, make_report
from understudy.cli.tables import chats_table, decision_line, outcomes_table, print_failures
from understudy.cli.traffic import Outcome
from understudy.client import Answer, Attempt, Decision, DecisionReason, FinishReason, Usage
from understudy.local.traces import Span, Trace
from understudy.workloads import ToolCall
from understudy.workloads.snips.dataset import Row

GOLD = ToolCall("GetWeather", {"city": "Oslo"})
ROW = Row("weather in [oslo]", GOLD)


def attempt(pool: str, confidence: float | None) -> Attempt:
    usage = Usage(prompt_tokens=10, completion_tokens=5, cached_prompt_tokens=0)
    return Attempt(pool, f"{pool}@1", "", usage, 2, confidence, 15, 15.0, 0.1, (), "w:1")


def decision(*pools: str, cost: float, reason: DecisionReason) -> Decision:
    attempts = tuple(attempt(pool, 0.75 if pool == "slm" else None) for pool in pools)
    return Decision(pools[-1], reason, "snips", 0.5, attempts, cost, cost / 40, "ab" * 16, True)


ACCEPTED = decision("slm", cost=4.0, reason=DecisionReason.SLM_ACCEPTED)
ESCALATED = decision("slm", "llm", cost=44.0, reason=DecisionReason.LOW_CONFIDENCE)
ALONE = decision("llm", cost=40.0, reason=DecisionReason.REQUESTED)
CHAT = Answer("r", "Blue [light].", (), FinishReason.STOP, Usage(5, 3, 0), ALONE)
FAILED = Outcome(ROW, None, None, 1.0, "It broke.")
ROUTED = [Outcome(ROW, GOLD, ACCEPTED, 0.2), Outcome(ROW, None, ESCALATED, 0.6)]
LLM_ONLY = [Outcome(ROW, GOLD, ALONE, 0.5), FAILED]


def span(service: str, span_id: str, parent_id: str) -> Span:
    return Span(
        trace_id="ab" * 16,
        span_id=span_id,
        parent_id=parent_id,
        service=service,
        name=f"{service}.work",
        start_ns=0,
        end_ns=1000,
        is_error=False,
        status_message="",
        attributes={},
    )


def printed(*renderables: object, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    for renderable in renderables:
        console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_report_counts_both_arms_failures_and_only_routed_requests() -> None:
    trace = Trace("ab" * 16, (span("router", "a", ""), span("attention-llm", "b", "a")))
    report = make_report(ROUTED, LLM_ONLY, Chats((("Sky?", CHAT),), ("It broke too.",)), trace)
    assert (report.requests, report.failed) == (4, 2)
    assert (report.answered_by_slm, report.escalated) == (1, 1)
    assert (report.exact_match, report.llm_only_exact_match) == (0.5, 0.5)
    assert report.cost_ratio == 48 / 40
    assert report.services_in_trace == ["attention", "router"]


def test_a_report_without_a_trace_names_no_service() -> None:
    assert make_report(ROUTED, LLM_ONLY, Chats((), ()), None).services_in_trace == []


def test_the_table_says_who_answered_how_sure_and_whether_right() -> None:
    text = printed(outcomes_table(ROUTED, LLM_ONLY))
    first, second = [line for line in text.splitlines() if "weather in [oslo]" in line]
    assert first.split()[4:] == ["slm", "slm", "accepted", "0.75", "4.0", "10", "%", "✓", "✓"]
    assert second.split()[4:] == ["llm", "low", "confidence", "0.75", "44.0", "110", "%", "✗", "✗"]


def test_eighty_columns_shorten_the_utterance_and_no_figure() -> None:
    long = Row("please tell me what the weather is going to be like in oslo tomorrow", GOLD)
    broken = Outcome(long, None, None, 1.0, "The session with the worker broke: it went away.")
    routed = [Outcome(long, GOLD, ESCALATED, 0.2)] * 99 + [broken]
    lines = printed(outcomes_table(routed, routed), width=80).splitlines()
    assert max(map(len, lines)) <= 80
    first, last = lines[-100], lines[-1]
    assert first.split()[0] == "1" and last.split()[0] == "100"
    assert "please tell" in first and "…" in first
    assert first.split()[-8:] == ["low", "confidence", "0.75", "44.0", "110", "%", "✓", "✓"]
    assert "failed" in last and last.count("…") == 2, "the utterance and the failure"
    assert last.split()[-2:] == ["✗", "✗"]
    heads = lines[1] + lines[2]
    for word in ("#", "utterance", "answered", "by", "reason", "confidence", "cost", "of", "LLM"):
        assert word in heads
    assert "…" not in heads


def test_chats_keep_their_cost_at_eighty_columns() -> None:
    text = printed(chats_table([("Why is the sky blue? " * 3, CHAT)]), width=80)
    assert "40.0" in text and "requested" in text


def test_text_of_users_and_models_is_never_markup() -> None:
    text = printed(chats_table([("[bold]Sky?[/bold]", CHAT)]))
    assert "[bold]Sky?[/bold]" in text
    assert "Blue [light]." in text


def test_a_decision_is_one_line_with_its_trace() -> None:
    text = printed(decision_line(ESCALATED))
    assert "answered by llm · low confidence · confidence 0.75 · cost 44.0 (110 %" in text
    assert "ab" * 16 in text


def test_only_the_first_failures_are_spelled_out() -> None:
    console = Console(file=io.StringIO(), width=160)
    print_failures(console, [FAILED] * 5)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("It broke.") == 3
    assert "and 2 more failed" in text
