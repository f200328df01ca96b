"""Who computes: Triton while it answers, this process or a replica while it does not."""

import logging
from dataclasses import dataclass, field

import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from services.experts.canary import canary_request
from services.experts.executors import (
    DEADLINE_SHARE,
    Availability,
    Computed,
    InProcess,
    TritonExecutor,
    TritonLimits,
)
from services.experts.holdings import Holdings
from services.experts.metrics import ExpertsMetrics
from tests.contract.experts.parts import DENSE, seeded
from understudy.errors import DeadlineExceeded, Unavailable, UnderstudyError
from understudy.exchange.frame import Header
from understudy.exchange.tensors import Request
from understudy.exchange.traces import TraceSegment
from understudy.serving import HealthState

ANSWER = torch.ones(1, DENSE.hidden_size)


@dataclass
class FakeBackend:
    failure: UnderstudyError | None = None
    calls: list[tuple[float, str]] = field(default_factory=list)

    def compute(
        self, header: Header, request: Request, *, timeout_s: float, traceparent: str
    ) -> Tensor:
        self.calls.append((timeout_s, traceparent))
        if self.failure is not None:
            raise self.failure
        return ANSWER


@dataclass
class Site:
    """An executor, and what it touches."""

    backend: FakeBackend
    availability: Availability
    executor: TritonExecutor
    registry: CollectorRegistry
    health: HealthState

    def compute(self, remaining_s: float = 10.0, traces: tuple[TraceSegment, ...] = ()) -> Computed:
        header, request = canary_request(HOLDINGS)
        return self.executor.compute(header, request._replace(traces=traces), remaining_s)

    def metric(self, name: str) -> float:
        return self.registry.get_sample_value(f"understudy_experts_{name}") or 0.0


HOLDINGS = Holdings.take(seeded(DENSE))


def site(*, has_fallback: bool = True, min_tokens: int = 1) -> Site:
    backend, registry, health = FakeBackend(), CollectorRegistry(), HealthState()
    metrics = ExpertsMetrics.on(registry)
    availability = Availability(metrics, None if has_fallback else health)
    executor = TritonExecutor(
        backend,
        InProcess(HOLDINGS) if has_fallback else None,
        availability,
        TritonLimits(timeout_s=2.0, min_tokens=min_tokens),
        metrics,
    )
    return Site(backend, availability, executor, registry, health)


def test_triton_computes_once_its_canary_has_answered():
    here = site()
    assert here.compute().place == "in_process"
    assert here.backend.calls == []
    here.availability.mark_up()
    total, place = here.compute()
    assert place == "triton"
    assert torch.equal(total, ANSWER)
    assert here.metric("triton_up") == 1


def test_a_failed_call_is_computed_here_and_triton_is_not_asked_again(
    caplog: pytest.LogCaptureFixture,
):
    here = site()
    here.availability.mark_up()
    here.backend.failure = Unavailable("the server is gone")
    with caplog.at_level(logging.WARNING, logger="services.experts"):
        answers = [here.compute() for _ in range(3)]
    expected = HOLDINGS.compute(*canary_request(HOLDINGS))
    assert all(torch.equal(answer.total, expected) for answer in answers)
    assert len(here.backend.calls) == 1
    assert [record.message for record in caplog.records] == [
        "Triton is not used until its canary answers: the server is gone"
    ]
    assert here.metric("fallbacks_total") == 3
    assert here.metric("triton_up") == 0


def test_triton_is_used_again_when_it_is_back():
    here = site()
    here.availability.mark_up()
    here.backend.failure = DeadlineExceeded("late")
    here.compute()
    here.backend.failure = None
    here.availability.mark_up()
    assert here.compute().place == "triton"


def test_whoever_listens_hears_that_triton_went():
    here, heard = site(), []
    here.availability.subscribe(lambda: heard.append(here.availability.is_up))
    here.availability.mark_up()
    here.availability.mark_down("gone")
    here.availability.mark_down("still gone")
    assert heard == [False]


@pytest.mark.parametrize(("remaining_s", "timeout_s"), [(100.0, 2.0), (1.0, DEADLINE_SHARE)])
def test_a_call_waits_no_longer_than_its_share_of_the_deadline(remaining_s, timeout_s):
    here = site()
    here.availability.mark_up()
    here.compute(remaining_s)
    assert here.backend.calls == [(timeout_s, "")]


def test_the_first_attempts_trace_context_goes_with_the_call():
    here, parent = site(), f"00-{'1' * 32}-{'2' * 16}-01"
    here.availability.mark_up()
    segments = [TraceSegment.from_traceparent(parent, rows=1)] * 2
    here.compute(traces=tuple(segment for segment in segments if segment))
    assert here.backend.calls[0][1] == parent


def test_small_frames_are_computed_here_and_are_no_fallback():
    here = site(min_tokens=2)
    here.availability.mark_up()
    assert here.compute().place == "in_process"
    assert here.backend.calls == []
    assert here.metric("fallbacks_total") == 0


def test_without_a_fallback_frames_go_to_a_replica_and_health_says_so():
    here = site(has_fallback=False)
    assert not here.health.is_ready
    here.availability.mark_up()
    assert here.health.is_ready
    here.backend.failure = Unavailable("gone")
    with pytest.raises(Unavailable, match="use a replica"):
        here.compute()
    assert (here.health.is_ready, here.health.reason) == (False, "gone")


def test_with_a_fallback_health_does_not_depend_on_triton():
    here = site()
    here.availability.mark_down("gone")
    assert here.health.is_ready
