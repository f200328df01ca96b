"""The engine thread: wakes for commands, publishes outputs, and dies loudly."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest
from prometheus_client import CollectorRegistry

from services.attention.core import EngineCore
from services.attention.engine import Engine
from services.attention.metrics import EngineMetrics
from services.attention.outputs import StepOutput
from services.attention.sequence import SequenceKey
from tests.unit.attention.parts import FakeRunner, make_core, submission
from understudy.errors import Unavailable

WAIT_S = 30.0
Outputs = queue.SimpleQueue[Mapping[int, StepOutput]]


@pytest.fixture
def outputs() -> Outputs:
    return queue.SimpleQueue()


@pytest.fixture
def death() -> threading.Event:
    return threading.Event()


@pytest.fixture
def engine(runner: FakeRunner, outputs: Outputs, death: threading.Event) -> Iterator[Engine]:
    metrics = EngineMetrics(CollectorRegistry())
    engine = Engine(
        lambda on_loaded: make_core(runner, on_loaded=on_loaded, metrics=metrics),
        publish=outputs.put,
        on_death=death.set,
        metrics=metrics,
    )
    engine.start()
    yield engine
    engine.stop()


def ask(engine: Engine, question: Callable[[object], object]) -> object:
    """Return an answer of the core, from between two steps."""
    answer: queue.SimpleQueue[object] = queue.SimpleQueue()
    engine.call(lambda core: answer.put(question(core)))
    return answer.get(timeout=WAIT_S)


def test_submitted_sequence_is_computed_and_published(engine: Engine, outputs: Outputs):
    engine.submit(submission(max_tokens=2))
    first, second = outputs.get(timeout=WAIT_S), outputs.get(timeout=WAIT_S)
    assert len(first[1].tokens) == 1
    assert [finished.sequence_id for finished in second[1].finished] == [1]


def test_cancelled_sequence_frees_its_blocks_within_one_step(
    engine: Engine, runner: FakeRunner, outputs: Outputs
):
    step_began, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        step_began.set()
        may_end.wait(WAIT_S)

    runner.on_run = hold
    engine.submit(submission(max_tokens=8))
    assert step_began.wait(WAIT_S)
    assert not engine.is_wanted
    engine.cancel(SequenceKey(1, 1))
    assert engine.is_wanted
    may_end.set()
    assert ask(engine, lambda core: core.stats().num_free_blocks) == 16
    assert len(runner.steps) == 1
    assert not engine.is_wanted


def test_death_is_told_once_and_later_work_is_refused(
    engine: Engine, runner: FakeRunner, death: threading.Event, caplog: pytest.LogCaptureFixture
):
    def break_down() -> None:
        raise RuntimeError("a tensor went missing")

    runner.on_run = break_down
    engine.submit(submission())
    assert death.wait(WAIT_S)
    assert engine.is_dead
    with pytest.raises(Unavailable, match="not running"):
        engine.submit(submission(2))
    assert "engine thread died" in caplog.text


def test_stopped_engine_refuses_work(engine: Engine):
    engine.stop()
    with pytest.raises(Unavailable):
        engine.submit(submission())
    assert not engine.is_dead


def test_blocks_are_checked_when_the_work_is_done(
    engine: Engine, outputs: Outputs, monkeypatch: pytest.MonkeyPatch
):
    checked = threading.Event()
    monkeypatch.setattr(EngineCore, "check_integrity", lambda core: checked.set())
    engine.submit(submission(max_tokens=1))
    outputs.get(timeout=WAIT_S)
    assert checked.wait(WAIT_S)


def test_leaked_block_ends_the_engine_rather_than_serve_foreign_kv(
    engine: Engine, outputs: Outputs, death: threading.Event, caplog: pytest.LogCaptureFixture
):
    def leak(core: EngineCore) -> list[int] | None:
        return core._scheduler.blocks.allocate(1)

    leaked = ask(engine, leak)
    engine.submit(submission(max_tokens=1))
    outputs.get(timeout=WAIT_S)
    assert death.wait(WAIT_S)
    assert "References differ" in caplog.text
    engine._core._scheduler.blocks.release(leaked)  # for the check after every test
