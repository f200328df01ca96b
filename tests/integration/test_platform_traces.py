"""An escalated request's trace, as `understudy trace` reads it from the local store."""

from collections import Counter

import pytest

from tests.integration.live_platform import Cast, LivePlatform
from tests.integration.processes import wait_until
from understudy.cli.waterfall import COMPLETE, find_trace, service_families
from understudy.errors import NotFound
from understudy.local.traces import Span, Trace
from understudy.telemetry import names

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_LAYERS = 30
NUM_LAYER_GROUPS = 6
NUM_WORKERS = 2
MAX_SPANS = 200
"""Most spans of one request (DESIGN section 3)."""


@pytest.fixture(scope="module")
def trace(live: LivePlatform, cast: Cast) -> Trace:
    """The trace of the escalated request, once every service has handed its spans over."""
    trace_id = cast.escalated.answer.decision.trace_id
    expected = {
        names.ROUTER_GENERATE: 1,
        names.ROUTER_ATTEMPT: 2,
        names.ATTENTION_SEQUENCE: 2,
        names.EXPERTS_COMPUTE: NUM_LAYER_GROUPS * NUM_WORKERS,
        names.KVSTORE_LOOKUP: 1,
    }
    found: Trace | None = None

    def is_whole() -> bool:
        nonlocal found
        try:
            found = find_trace(live.traces, trace_id, is_escalated=False)
        except NotFound:
            return False
        return Counter(span.name for span in found.spans) >= Counter(expected)

    wait_until(is_whole, "the spans of every service")
    assert found is not None
    return found


def spans_of(trace: Trace, name: str) -> list[Span]:
    return [span for span in trace.spans if span.name == name]


def lineage(trace: Trace, span: Span) -> list[Span]:
    """The span, its parent, and so on to the first whose parent is not stored."""
    known = {one.span_id: one for one in trace.spans}
    line = [span]
    while line[-1].parent_id in known:
        line.append(known[line[-1].parent_id])
    return line


def test_every_span_descends_from_the_routers_root(trace: Trace) -> None:
    (root,) = spans_of(trace, names.ROUTER_GENERATE)
    assert (root.parent_id, root.attributes[names.ESCALATED]) == ("", True)
    assert {lineage(trace, span)[-1].span_id for span in trace.spans} == {root.span_id}


def test_the_trace_names_router_attention_experts_and_kvstore(trace: Trace) -> None:
    assert set(service_families(trace)) == COMPLETE
    assert {"attention-slm", "attention-llm"} <= set(trace.services)
    assert len(trace.spans) <= MAX_SPANS
    assert not [span.status_message for span in trace.spans if span.is_error]


def test_the_experts_rows_add_up_to_the_positions_of_the_attempt(trace: Trace, cast: Cast) -> None:
    slm, llm = cast.escalated.answer.decision.attempts
    rows: Counter[object] = Counter()
    for span in spans_of(trace, names.EXPERTS_COMPUTE):
        shards = span.attributes[names.SHARDS]
        assert isinstance(shards, tuple)
        tokens = span.attributes[names.TOKENS]
        assert isinstance(tokens, int)
        assert tokens == span.attributes[names.LAYER_COUNT] * llm.computed_positions
        rows.update(dict.fromkeys(shards, tokens))
    assert rows == dict.fromkeys(range(NUM_WORKERS), NUM_LAYERS * llm.computed_positions)
    assert slm.computed_positions > 0


def test_the_experts_spans_stand_below_the_llms_attempt(trace: Trace) -> None:
    for span in spans_of(trace, names.EXPERTS_COMPUTE):
        names_above = [one.name for one in lineage(trace, span)[1:]]
        expected = [names.ATTENTION_SEQUENCE, names.ROUTER_ATTEMPT, names.ROUTER_GENERATE]
        assert names_above == expected
        attempt = lineage(trace, span)[2]
        assert attempt.attributes[names.POOL] == "llm"


def test_the_attempts_spans_agree_with_the_decision(trace: Trace, cast: Cast) -> None:
    decision = cast.escalated.answer.decision
    positions = {attempt.pool: attempt.computed_positions for attempt in decision.attempts}
    traced = {
        span.attributes[names.POOL]: span.attributes[names.COMPUTED_POSITIONS]
        for span in spans_of(trace, names.ROUTER_ATTEMPT)
    }
    assert traced == positions
    phases: Counter[str] = Counter()
    for span in spans_of(trace, names.ATTENTION_STEPS):
        computed = span.attributes[names.COMPUTED_TOKENS]
        assert isinstance(computed, int)
        phases[span.service.removeprefix("attention-")] += computed
    assert phases == positions


def test_the_latest_escalated_trace_is_found_without_its_id(
    live: LivePlatform, trace: Trace
) -> None:
    found = find_trace(live.traces, None, is_escalated=True)
    assert found.root.attributes[names.ESCALATED] is True
    assert (
        trace.trace_id
        == find_trace(live.traces, trace.trace_id.upper(), is_escalated=False).trace_id
    )
