"""The loop body: submissions in, outputs per session out, failures that stay alone."""

import math
import time

import pytest
from prometheus_client import CollectorRegistry

from services.attention.core import EngineCore
from services.attention.forecast import MIN_STEPS
from services.attention.metrics import EngineMetrics
from services.attention.observers import StepInterrupted, TraceSegment
from services.attention.outputs import StepOutput
from services.attention.sequence import FinishReason, Priority, SequenceKey
from tests.unit.attention.parts import (
    ROOT,
    FakeRunner,
    make_core,
    make_scheduler,
    next_token,
    submission,
)
from understudy.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)


def expected(tokens: tuple[int, ...], count: int) -> list[int]:
    output = list(tokens)
    for _ in range(count):
        output.append(next_token(output))
    return output[len(tokens) :]


def run_all(core) -> list[StepOutput]:
    outputs = []
    while core.step():
        core.check_integrity()
        outputs.extend(core.take_outputs().values())
    return outputs


def test_sequence_runs_to_its_limit_and_frees_its_blocks():
    core = make_core()
    core.submit(submission(max_tokens=3))
    outputs = run_all(core)
    assert [run.token_ids for out in outputs for run in out.tokens] == [
        [token] for token in expected((5, 6, 7), 3)
    ]
    (finished,) = outputs[-1].finished
    assert finished.reason is FinishReason.LENGTH
    assert finished.computed_positions == 3 + 2
    stats = core.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, 16)


def test_each_session_gets_one_output_a_step():
    core = make_core()
    for session_id, sequence_id in ((1, 1), (1, 2), (2, 1)):
        sent = submission(sequence_id)
        core.submit(
            sent.__class__(
                key=SequenceKey(session_id, sequence_id),
                tokens=sent.tokens,
                deadline_s=sent.deadline_s,
            )
        )
    assert core.step()
    outputs = core.take_outputs()
    assert {key: len(out.tokens) for key, out in outputs.items()} == {1: 2, 2: 1}
    assert {out.step for out in outputs.values()} == {1}


def test_resubmission_with_committed_tokens_gives_the_same_output():
    tokens = expected((5, 6, 7), 6)
    core = make_core()
    core.submit(submission(tokens=(5, 6, 7, *tokens[:2]), num_committed=2, max_tokens=6))
    outputs = run_all(core)
    assert [run.token_ids[0] for out in outputs for run in out.tokens] == tokens[2:]


def test_cancel_frees_blocks_before_the_next_step_and_says_nothing():
    core = make_core()
    core.submit(submission())
    core.step()
    core.take_outputs()
    core.cancel(SequenceKey(1, 1))
    core.cancel(SequenceKey(1, 77))
    assert core.stats().num_free_blocks == 16
    assert not core.step()
    assert core.take_outputs() == {}


def test_interrupted_step_is_run_again_for_those_who_stayed():
    runner = FakeRunner()
    core = make_core(runner)
    for sequence_id in (1, 2):
        core.submit(submission(sequence_id, max_tokens=3))
    core.step()
    core.take_outputs()

    def interrupt() -> None:
        runner.on_run = lambda: None
        raise StepInterrupted

    runner.on_run = interrupt
    assert core.step()
    core.check_integrity()
    assert core.take_outputs() == {}
    core.cancel(SequenceKey(1, 1))
    outputs = run_all(core)
    assert [run.token_ids[0] for out in outputs for run in out.tokens] == expected((5, 6, 7), 3)[1:]
    assert core.stats().num_free_blocks == 16


def test_deadline_ends_a_sequence_with_its_blocks():
    core = make_core()
    core.submit(submission(deadline_s=time.monotonic() - 1.0))
    assert not core.step()
    (failed,) = core.take_outputs()[1].failed
    assert isinstance(failed.error, DeadlineExceeded)
    assert core.stats().num_free_blocks == 16


def test_full_queue_is_an_output_with_retry_delay():
    core = make_core(scheduler=make_scheduler(max_waiting=1))
    core.submit(submission(1))
    core.submit(submission(2))
    (failed,) = core.take_outputs()[1].failed
    assert failed.sequence_id == 2
    assert isinstance(failed.error, ResourceExhausted)


def test_experts_that_are_away_abort_the_step_but_not_the_engine(runner: FakeRunner):
    def fail() -> None:
        raise Unavailable("No expert worker holds layer 3.")

    core = make_core(runner)
    runner.on_run = fail
    core.submit(submission(1))
    assert core.step()
    (failed,) = core.take_outputs()[1].failed
    assert isinstance(failed.error, Aborted)
    assert "layer 3" in failed.error.message
    runner.on_run = lambda: None
    core.submit(submission(2, max_tokens=1))
    assert run_all(core)[-1].finished[0].sequence_id == 2


class Refusing:
    """A matcher whose grammar refuses every token that the model chooses."""

    is_stopped = False

    def mask(self):
        import numpy as np

        return np.full(4, -1, dtype=np.int32)

    def accept(self, token: int) -> None:
        raise InvalidArgument(f"Token {token} does not fit.")

    def forced(self) -> list[int]:
        return []


def test_grammar_failure_takes_nobody_with_it():
    from dataclasses import replace

    core = make_core()
    core.submit(replace(submission(1), matcher=Refusing()))
    core.submit(submission(2, max_tokens=1))
    (output,) = run_all(core)
    assert [failed.sequence_id for failed in output.failed] == [1]
    assert [finished.sequence_id for finished in output.finished] == [2]


def test_observer_hears_of_every_row_of_a_step_and_not_of_unsampled_ends():
    class Recorder:
        def __init__(self) -> None:
            self.steps: list[tuple[int, list[TraceSegment]]] = []
            self.ended: list[str] = []
            self.deadlines: list[float] = []

        def begin_step(self, step, segments, deadline_s: float) -> None:
            self.steps.append((step, list(segments)))
            self.deadlines.append(deadline_s)

        def end_trace(self, traceparent: str) -> None:
            self.ended.append(traceparent)

    observer = Recorder()
    core = make_core(observer=observer)
    deadline_s = time.monotonic() + 600.0
    core.submit(submission(1, max_tokens=2))
    core.submit(submission(2, tokens=(9,), max_tokens=1, deadline_s=deadline_s))
    run_all(core)
    assert observer.deadlines == [deadline_s, math.inf]
    assert observer.steps == [
        (1, [TraceSegment("", 3), TraceSegment("", 1)]),
        (2, [TraceSegment("", 1)]),
    ]
    assert observer.ended == []


@pytest.mark.parametrize("token_budget", [1, 2, 64])
def test_chunking_does_not_change_the_output(token_budget: int):
    core = make_core(scheduler=make_scheduler(token_budget=token_budget))
    core.submit(submission(tokens=range(3, 20), max_tokens=4, kv_root=ROOT))
    outputs = run_all(core)
    tokens = [run.token_ids[0] for out in outputs for run in out.tokens]
    assert tokens == expected(tuple(range(3, 20)), 4)


def warm(core: EngineCore) -> None:
    """Let the core measure enough steps to forecast by."""
    core.submit(submission(900, max_tokens=MIN_STEPS + 8, ignore_eos=True))
    run_all(core)


def test_deadline_that_cannot_be_met_is_refused_at_once(runner: FakeRunner):
    registry = CollectorRegistry()
    core = make_core(runner, metrics=EngineMetrics(registry))
    warm(core)
    num_steps = len(runner.steps)
    deadline_s = time.monotonic() + 1e-6
    core.submit(submission(1, max_tokens=40, ignore_eos=True, deadline_s=deadline_s))
    (failed,) = core.take_outputs()[1].failed
    assert isinstance(failed.error, DeadlineExceeded)
    assert failed.error.metadata["reason"] == "deadline cannot be met"
    assert not core.step()
    assert len(runner.steps) == num_steps
    labels = {"cause": "deadline", "priority": "standard"}
    assert registry.get_sample_value("understudy_attention_refusals_total", labels) == 1


def test_preemption_and_classes_are_counted(runner: FakeRunner):
    registry = CollectorRegistry()
    scheduler = make_scheduler(num_blocks=4, block_size=4, max_sequences=1)
    core = make_core(runner, scheduler, metrics=EngineMetrics(registry))
    core.submit(submission(1, range(3, 11), max_tokens=2, priority=Priority.BATCH))
    core.step()
    core.submit(submission(2, max_tokens=1, priority=Priority.INTERACTIVE))
    assert core.stats().waiting_by_priority == (1, 0, 0)
    run_all(core)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"understudy_attention_{name}", labels)

    assert value("preemptions_total", how="recompute") == 1
    assert value("scheduled_tokens_total", priority="interactive") == 3
    assert value("scheduled_tokens_total", priority="batch") == 8 + 9
    assert value("queue_seconds_count", priority="interactive") == 1


def test_waiting_for_a_shared_prefix_is_counted_once():
    registry = CollectorRegistry()
    core = make_core(metrics=EngineMetrics(registry))
    for sequence_id in (1, 2):
        core.submit(submission(sequence_id, range(3, 16), max_tokens=1, kv_root=ROOT))
    outputs = run_all(core)
    assert registry.get_sample_value("understudy_attention_deferrals_total") == 1
    ends = [end for output in outputs for end in output.finished]
    assert sorted(end.computed_positions for end in ends) == [1, 13]
