"""Fixtures of the attention worker's tests."""

from collections.abc import Iterator

import pytest

from services.attention.scheduler import Scheduler
from tests.unit.attention.parts import FakeRunner


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture(autouse=True)
def _blocks_agree_after_every_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check every scheduler that a test made, whatever state the test left it in."""
    schedulers: list[Scheduler] = []
    make = Scheduler.__init__

    def make_and_remember(scheduler: Scheduler, *parts: object, **settings: object) -> None:
        make(scheduler, *parts, **settings)
        schedulers.append(scheduler)

    monkeypatch.setattr(Scheduler, "__init__", make_and_remember)
    yield
    for scheduler in schedulers:
        scheduler.check_integrity()
