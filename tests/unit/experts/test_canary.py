"""The canary: what it takes for Triton being there, and how it mends what is not."""

import logging
import threading
from dataclasses import dataclass, field, replace

import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from services.experts import canary as canary_module
from services.experts.canary import FAST_TOLERANCE, MAX_LATE, Canary, canary_request
from services.experts.executors import Availability
from services.experts.holdings import Holdings
from services.experts.metrics import ExpertsMetrics
from tests.contract.experts.parts import DENSE, MIXTURE, seeded
from understudy.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    Unavailable,
    UnderstudyError,
)
from understudy.exchange.frame import Header
from understudy.exchange.tensors import Request

HOLDINGS = Holdings.take(seeded(DENSE))


@dataclass
class FakeServer:
    """Answers with a sum, scaled, or fails; a reload may mend it."""

    failure: UnderstudyError | None = None
    scale: float = 1.0
    is_there: bool = True
    reload_failure: UnderstudyError | None = None
    reloads: int = 0
    asked: threading.Event = field(default_factory=threading.Event)

    def compute(
        self, header: Header, request: Request, *, timeout_s: float, traceparent: str
    ) -> Tensor:
        self.asked.set()
        if self.failure is not None:
            raise self.failure
        return HOLDINGS.compute(header, request) * self.scale

    def is_live(self, timeout_s: float) -> bool:
        return self.is_there

    def reload(self, timeout_s: float) -> None:
        self.reloads += 1
        if self.reload_failure is not None:
            raise self.reload_failure
        self.failure, self.scale = None, 1.0


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def watch(server: FakeServer, registry: CollectorRegistry) -> tuple[Canary, Availability]:
    metrics = ExpertsMetrics.on(registry)
    availability = Availability(metrics, None)
    return Canary(server, HOLDINGS, availability, metrics, interval_s=60.0), availability


def test_a_right_answer_makes_triton_available(registry: CollectorRegistry):
    server = FakeServer()
    canary, availability = watch(server, registry)
    assert not availability.is_up
    canary.look()
    assert availability.is_up
    assert server.reloads == 0


@pytest.mark.parametrize(
    "server",
    [
        FakeServer(failure=Internal("Stub process is not healthy.")),
        FakeServer(scale=1.01),
        FakeServer(scale=float("nan")),
    ],
    ids=["dead stub", "other weights", "not a number"],
)
def test_a_model_that_answers_wrongly_is_loaded_again(server, registry: CollectorRegistry):
    canary, availability = watch(server, registry)
    canary.look()
    assert availability.is_up
    assert server.reloads == 1
    assert registry.get_sample_value("understudy_experts_triton_loads_total") == 1
    assert registry.get_sample_value("understudy_experts_canary_failures_total") == 1


def test_where_activations_are_rounded_here_triton_may_differ_by_as_much(
    registry: CollectorRegistry,
):
    server, metrics = FakeServer(scale=1.01), ExpertsMetrics.on(registry)
    availability = Availability(metrics, None)
    Canary(server, HOLDINGS, availability, metrics, tolerance=FAST_TOLERANCE).look()
    assert availability.is_up
    assert server.reloads == 0


def test_a_server_that_is_away_is_only_waited_for(registry: CollectorRegistry):
    server = FakeServer(failure=Unavailable("connection refused"), is_there=False)
    canary, availability = watch(server, registry)
    canary.look()
    assert not availability.is_up
    assert server.reloads == 0
    server.failure, server.is_there = None, True
    canary.look()
    assert availability.is_up


def test_a_slow_server_is_not_reloaded_before_it_was_late_several_times(
    registry: CollectorRegistry,
):
    server = FakeServer(failure=DeadlineExceeded("late"))
    canary, _ = watch(server, registry)
    for _ in range(MAX_LATE - 1):
        canary.look()
    assert server.reloads == 0
    canary.look()
    assert server.reloads == 1


def test_a_package_of_other_weights_is_named_and_not_loaded_again_at_once(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
):
    refused = FailedPrecondition("The model has the config digest abc; package the same weights.")
    server = FakeServer(failure=Unavailable("unknown model"), reload_failure=refused)
    canary, availability = watch(server, registry)
    with caplog.at_level(logging.WARNING, logger="services.experts"):
        canary.look()
        canary.look()
    assert server.reloads == 1
    assert not availability.is_up
    assert caplog.text.count("package the same weights") == 1


def test_a_failed_call_wakes_the_canary_at_once(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(canary_module, "RELOAD_TIMEOUT_S", 10.0)
    server = FakeServer()
    canary, availability = watch(server, registry)
    canary.start()
    assert server.asked.wait(10)
    server.asked.clear()
    availability.mark_up()
    availability.mark_down("a call failed")
    assert server.asked.wait(10), "the canary slept through it"
    canary.close()


@pytest.mark.parametrize(
    "config",
    [DENSE, MIXTURE, replace(MIXTURE, dense_layers=(1,))],
    ids=["dense", "mixture", "dense first"],
)
def test_the_canarys_sum_says_something_about_the_weights(config):
    holdings = Holdings.take(seeded(config), expert_ids=[2, 3], layers=[1, 2])
    header, request = canary_request(holdings)
    assert holdings.holds(header)
    holdings.check_shape(header)
    holdings.check_experts(request)
    assert holdings.compute(header, request).abs().max() > torch.tensor(1e-3)
