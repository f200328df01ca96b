"""Windows of counters: growth, restarts, quantiles."""

import pytest

from services.controller.scaling.windows import (
    Info,
    Reading,
    Window,
    attention_load,
    experts_load,
    quantile,
    window,
)
from tests.unit.controller.fake_cluster import series


def buckets(counts: dict[str, float]) -> Window:
    name = "wait_bucket"
    return Window(15.0, {(name, frozenset({("le", le)})): n for le, n in counts.items()})


def test_counters_grow_between_readings_and_a_restart_counts_from_zero():
    found = window(Reading(10.0, series(a=5, b=9)), Reading(25.0, series(a=8, b=2, c=1)))
    assert found.length_s == 15.0
    assert [found.total(name) for name in "abc"] == [3, 2, 1]


def test_attention_load_sums_workers_and_tells_phases_apart():
    grown = series(
        understudy_attention_step_seconds_count=10,
        understudy_attention_step_seconds_sum=2.0,
        understudy_attention_computed_tokens_total__prefill=300,
        understudy_attention_computed_tokens_total__decode=40,
        understudy_attention_ended_sequences_total=2,
    )
    load = attention_load([Window(15, grown)] * 2, [Info(3, 1, 0.5), Info(1, 0, 0.1)])
    assert load is not None
    assert (load.steps, load.step_s, load.prefill_tokens) == (20, 4.0, 600)
    assert (load.decode_tokens, load.ended, load.running, load.waiting) == (80, 4, 4, 1)
    assert load.kv_occupancy == pytest.approx(0.3)
    assert attention_load([], []) is None
    assert experts_load([]) is None


def test_a_quantile_is_interpolated_and_bounded_by_the_last_finite_bucket():
    assert quantile([buckets({"1": 5, "2": 10, "+Inf": 10})], "wait", 0.9) == pytest.approx(1.8)
    assert quantile([buckets({"1": 5, "+Inf": 10})], "wait", 0.9) == 1.0
    assert quantile([buckets({"1": 0, "+Inf": 0})], "wait", 0.9) is None
    two = [buckets({"1": 1, "2": 1, "+Inf": 1}), buckets({"1": 0, "2": 1, "+Inf": 1})]
    assert quantile(two, "wait", 0.5) == 1.0
    assert quantile([], "wait", 0.5) is None
