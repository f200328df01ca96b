"""Every expression of dashboards and alerts, held against the schema without a Prometheus."""

from __future__ import annotations

import pytest

from deploy.telemetry.boards import DASHBOARDS
from deploy.telemetry.expressions import Matcher, Selector, plain, problems, read
from deploy.telemetry.rules import load_rules, recorded_series
from deploy.telemetry.schema import Schema

FAILURES = "understudy_router_failures_total"
RULES = load_rules()
EXPRESSIONS = [
    *((rule.name, rule.expression) for rule in RULES),
    *(
        (f"{board.name}: {panel.title}: {query.legend}", query.expression)
        for board in DASHBOARDS
        for panel in board.panels
        for query in panel.queries
    ),
]


@pytest.mark.parametrize(
    "expression", [one[1] for one in EXPRESSIONS], ids=[one[0] for one in EXPRESSIONS]
)
def test_expression_reads_only_what_is_declared(schema: Schema, expression: str) -> None:
    assert list(problems(expression, schema, recorded_series(RULES))) == []


def test_every_metric_is_watched_or_said_not_to_be(schema: Schema) -> None:
    read_names = {
        one.name for _, expression in EXPRESSIONS for one in read(plain(expression)).selectors
    }
    watched = {metric.name for name in read_names if (metric := schema.metric_of(name))}
    for_other_questions = {
        "understudy_serving_active_calls",
        "understudy_serving_call_duration_seconds",
        "understudy_attention_scheduled_tokens",
        "understudy_attention_generated_tokens",
        "understudy_attention_ended_sequences",
        "understudy_attention_deferrals",
        "understudy_attention_tenants",
        "understudy_attention_held_blocks",
        "understudy_attention_sessions",
        "understudy_experts_triton_up",
        "understudy_experts_triton_loads",
    }
    assert schema.metrics.keys() - watched == for_other_questions


def test_an_expression_is_taken_apart() -> None:
    reading = read(
        'histogram_quantile(0.9, sum by (le, pool) (rate(a_bucket{x=~"b|c", y!="d"}[5m]))) > 2'
        " and on (pod) up"
    )
    first, second = reading.selectors
    assert first == Selector(
        "a_bucket", (Matcher("x", "=~", "b|c"), Matcher("y", "!=", "d")), "rate", has_range=True
    )
    assert second == Selector("up", (), "", has_range=False)
    assert reading.labels == {"le", "pool", "pod"}


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("1 + 1", "reads nothing"),
        ("understudy_router_unheard", "understudy_router_unheard is not declared"),
        (FAILURES, "only grows"),
        (f"sum({FAILURES})", "only grows"),
        ("rate(understudy_router_active_requests[5m])", "is a gauge"),
        ("rate(understudy_router_request_seconds[5m])", "is not declared"),
        (f'rate({FAILURES}{{pod="a", code="b"}}[5m])', "has no label code"),
        (f'rate({FAILURES}{{reason="TIMEOUT"}}[5m])', "is never 'TIMEOUT'"),
        (f'rate({FAILURES}{{reason=~"INTERNAL|OOPS"}}[5m])', "is never 'OOPS'"),
        (f"sum by (workload) (rate({FAILURES}[5m]))", r"groups by \['workload'\]"),
    ],
)
def test_an_expression_beyond_the_schema_is_refused(
    schema: Schema, expression: str, sentence: str
) -> None:
    with pytest.raises(AssertionError, match=sentence):
        assert not list(problems(expression, schema, {}))
