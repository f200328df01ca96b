"""The simulation against hand-computed times, and against what must hold of any run."""

import gzip
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.capacity import WorkerModel
from benchmarks.simulation.fleet import TICK_S, Fleet, Run, Setup, View, tail
from benchmarks.simulation.policies import Hpa, Objectives, Saturation, busy
from benchmarks.simulation.scoring import compare, score, tune
from benchmarks.simulation.traces import Request, Trace, diurnal, read_trace, times
from benchmarks.simulation.workers import Served, Window, Worker
from services.controller.scaling.rules import PartRules, PoolRules

MODEL = WorkerModel(
    fixed_s=0.1, prefill_s=0.001, decode_s=0.01, max_sequences=2, token_budget=100,
    mixed_token_budget=51, doubling_context=10**9,
)  # fmt: skip


def play(worker: Worker) -> float:
    """Let a worker do all its events; return the time of the last."""
    now_s = 0.0
    while worker.next_s < float("inf"):
        now_s = worker.next_s
        worker.event(now_s)
    return now_s


def test_one_request_takes_its_prompt_steps_then_a_step_a_token():
    worker, served = Worker(MODEL, 0.0), Served(Request(0.0, 200, 11))
    worker.submit(served, 0.0)
    assert play(worker) == pytest.approx(served.last_s)
    assert served.first_s == pytest.approx(2 * (0.1 + 100 * 0.001))
    assert served.last_s - served.first_s == pytest.approx(10 * (0.1 + 0.01))
    assert served.tpot_s == pytest.approx(0.11)
    assert worker.window.prefill_tokens == pytest.approx(200)
    assert worker.window.decode_tokens == pytest.approx(10)
    assert worker.window.steps == pytest.approx(12)


def test_a_prompt_beside_a_running_sequence_gets_the_mixed_budget_and_slows_it():
    worker = Worker(MODEL, 0.0)
    first, second = Served(Request(0.0, 100, 1000)), Served(Request(0.2, 100, 5))
    worker.submit(first, 0.0)
    worker.event(worker.next_s)
    assert first.first_s == pytest.approx(0.2)
    worker.submit(second, 0.2)
    worker.event(worker.next_s)
    # 51 - 1 decoding = 50 prompt tokens a step, so two steps.
    assert second.ttft_s == pytest.approx(2 * (0.1 + 50 * 0.001 + 0.01))


def test_more_sequences_than_fit_wait_in_order():
    worker = Worker(MODEL, 0.0)
    three = [Served(Request(0.0, 100, 10)) for _ in range(3)]
    for served in three:
        worker.submit(served, 0.0)
    assert (worker.running, len(worker.waiting), worker.in_flight) == (2, 1, 3)
    play(worker)
    assert three[0].first_s < three[1].first_s < three[2].first_s
    assert worker.in_flight == 0
    assert worker.occupancy == 0


def test_starting_and_draining_workers_are_paid_for():
    class UpThenDown:
        def size(self, view: View) -> int:
            return 3 if view.at_s < 4 * TICK_S else 1

    requests = [Request(at_s, 50, 5) for at_s in (0.0, 1.0, 150.0)]
    run = Fleet(Setup(MODEL, start_s=20.0, initial=1), UpThenDown()).run(requests)
    assert [size for _, size in run.sizes][:3] == [1, 3, 3]
    assert run.worker_hours(0.0, 150.0) == pytest.approx((15 + 45 * 3 + 90) / 3600)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 400), st.integers(1, 60)), min_size=1),
    st.lists(st.integers(1, 5), min_size=1, max_size=8),
)
def test_every_request_is_served_whatever_a_policy_does(found, sizes):
    class Erratic:
        def size(self, view: View) -> int:
            return sizes[int(view.at_s // TICK_S) % len(sizes)]

    requests = sorted((Request(*one) for one in found), key=lambda one: one.at_s)
    run = Fleet(Setup(MODEL, start_s=10.0, initial=1, max_replicas=5), Erratic()).run(requests)
    assert len(run.served) == len(requests)
    for served in run.served:
        assert served.request.at_s < served.first_s <= served.last_s < float("inf")


def view(**changes) -> View:
    base = View(15.0, 4, 4, 0, 0, Window(busy_s=4 * 15.0), 0, 0, 0, 0.0, None, None)
    return replace(base, **changes)


def test_the_horizontal_autoscaler_follows_its_documented_rule():
    assert Hpa(busy, 0.5, 0.0).size(view()) == 8
    assert Hpa(busy, 0.95, 0.0).size(view()) == 4
    assert Hpa(busy, 0.5, 60.0).size(view(window=Window())) == 1
    # Workers that start count as idle when growing.
    assert Hpa(busy, 0.5, 0.0).size(view(desired=8, starting=4)) == 8
    held = Hpa(busy, 0.5, 60.0)
    held.size(view(desired=4, window=Window(busy_s=30.0)))
    assert held.size(view(at_s=30.0, window=Window(busy_s=3.0))) == 4


def test_the_saturation_law_grows_above_its_band_and_shrinks_below():
    objectives = Objectives(1.0, 0.0, 0.1)
    assert Saturation(objectives, 0.4, 0.55, 0.0).size(view(tpot_s=0.11)) == 8
    assert Saturation(objectives, 0.4, 0.55, 0.0).size(view(tpot_s=0.05)) == 4
    assert Saturation(objectives, 0.4, 0.55, 0.0).size(view(tpot_s=0.02)) == 2


def test_a_score_counts_requests_that_met_both_objectives():
    served = [Served(Request(at_s, 100, 11)) for at_s in (0.0, 1.0, 2.0, 99.0)]
    for one, (ttft_s, tpot_s) in zip(
        served, [(1.0, 0.1), (9.0, 0.1), (1.0, 0.9), (1.0, 0.1)], strict=True
    ):
        one.first_s = one.request.at_s + ttft_s
        one.last_s = one.first_s + 10 * tpot_s
    found = score(Run(served, [(0.0, 2), (5.0, 4)]), Objectives(1.0, 0.001, 0.2), 0.0, 10.0)
    assert found.attainment == pytest.approx(1 / 3)
    assert found.worker_hours == pytest.approx((2 * 5 + 4 * 5) / 3600)
    assert (found.peak, found.changes) == (4, 1)


def test_a_quantile_of_nothing_is_none():
    assert tail([]) is None
    assert tail([(1.0, 1.0), (2.0, 1.0), (3.0, 8.0)], 0.5) == 3.0


def test_traces_are_read_sorted_scaled_and_thinned(tmp_path):
    rows = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"2023-11-16 18:{minute:02}:00.5000000,{100 + minute},{minute}\n" for minute in (9, 0, 5)
    )
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(rows.encode()))
    trace = read_trace(path)
    assert [one.at_s for one in trace.requests] == [0.0, 300.0, 540.0]
    assert trace.requests[0] == Request(0.0, 100, 1)
    assert [one.at_s for one in trace.first_half().requests] == [0.0]
    assert len(times(trace, 10).requests) == 30
    many = Trace("many", tuple(Request(float(at_s), 10, 10) for at_s in range(1000)))
    day = diurnal(many, days=1, repeats=1)
    middle = sum(250 <= one.at_s < 750 for one in day.requests)
    assert len(day.requests) - middle < middle
    bad = tmp_path / "bad.csv"
    bad.write_text(rows.replace("105", "many"))
    with pytest.raises(ValueError, match=r"bad.csv, line 4"):
        read_trace(bad)
    bad.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    with pytest.raises(ValueError, match="no request"):
        read_trace(bad)


def test_a_comparison_tunes_on_the_first_half_and_scores_the_second():
    requests = tuple(Request(at_s * 1.5, 60, 20) for at_s in range(800))
    steady, objectives = Trace("steady", requests), Objectives(3.0, 0.01, 0.3)
    setup = Setup(MODEL, start_s=30.0, max_replicas=10)
    tuning = tune(steady, setup, objectives)
    results = compare(steady, setup, objectives, tuning.points(0.95))
    names = [one.policy for one in results]
    assert names[0] == "fixed peak"
    assert names[-2:] == ["Understudy", "Understudy, its defaults"]
    assert len(set(names)) == 7
    rules = PoolRules("llm", PartRules())
    assert results[-1].point == {"utilisation": rules.utilisation, "trend": rules.trend}
    assert compare(steady, setup, objectives, tuning.points(0.95)) == results
    stricter = tuning.points(1.0)
    assert stricter["fixed peak"]["replicas"] >= tuning.points(0.1)["fixed peak"]["replicas"]
