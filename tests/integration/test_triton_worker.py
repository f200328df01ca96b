"""An expert worker behind which Triton computes, dies and comes back; no step fails meanwhile."""

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from torch import Tensor

from services.attention.clients import RemoteExperts
from tests.integration.processes import Processes, Running, wait_until
from tests.integration.triton_parts import (
    CONFIG,
    Packaged,
    make_packages,
    require_installation,
    stub_pids,
)
from understudy.local.ports import free_port
from understudy.local.triton.server import TritonServer
from understudy.model.attention import PackedCausal
from understudy.model.decoder import resolve_compute
from understudy.model.transformer import Transformer
from understudy.model.weights import load_model

UP = "Triton computes the feed-forwards."
DOWN = "Triton is not used until its canary answers"
NUM_STEPS = 5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    require_installation()
    return make_packages(tmp_path_factory.getbasetemp() / "packages")


@pytest.fixture
def start_server(packaged: Packaged, tmp_path: Path) -> Iterator[Callable[[], TritonServer]]:
    """Start the server on one port, again and again; workers tell it what to load."""
    port, started = free_port(), []

    def start() -> TritonServer:
        log = tmp_path / "triton.log"
        installation = require_installation()
        started.append(TritonServer(installation, packaged.repository, log, grpc_port=port))
        started[-1].wait_ready()
        return started[-1]

    yield start
    for server in started:
        server.kill()


def start_worker(
    processes: Processes, packaged: Packaged, server: TritonServer, **settings: str
) -> Running:
    return processes.start(
        "experts",
        model=str(packaged.dense_path),
        executor="triton",
        triton=server.grpc_address,
        **settings,
    )


def test_a_server_that_dies_and_a_stub_that_dies_fail_no_step(
    processes: Processes,
    packaged: Packaged,
    start_server: Callable[[], TritonServer],
    tmp_path: Path,
) -> None:
    server, log = start_server(), tmp_path / "0-experts.log"
    worker = start_worker(processes, packaged, server, triton_shared_memory="true")
    pools = f'[{{"pool": "llm", "replicas": ["{worker.address}"]}}]'
    controller = processes.start("controller", pools=pools, probe_interval_s="0.2")
    compute = resolve_compute("exact")
    digest = load_model(packaged.dense_path, compute=compute).ffn_digest
    experts = RemoteExperts(CONFIG, digest, controller.address, "llm")

    def wait_for(line: str, count: int) -> None:
        wait_until(lambda: log.read_text().count(line) >= count, f"{line!r}, {count} times")

    def check_steps(first: int) -> None:
        for step in range(first, first + NUM_STEPS):
            experts.begin_step(step, [], math.inf)
            tokens = torch.arange(1 + 40 * (step % 3)) * 7 % CONFIG.vocab_size
            remote, local = (forward(packaged, used, tokens) for used in (experts, None))
            torch.testing.assert_close(remote, local, rtol=1e-5, atol=1e-5)

    try:
        experts.start(60.0)
        wait_for(UP, 1)
        check_steps(0)
        server.kill()
        check_steps(100)
        wait_for(DOWN, 1)
        server = start_server()
        wait_for(UP, 2)
        check_steps(200)
        for pid in stub_pids(server):
            os.kill(pid, signal.SIGKILL)
        check_steps(300)
        wait_for(DOWN, 2)
        wait_for(UP, 3)
        check_steps(400)
    finally:
        experts.close()
    assert log.read_text().count(DOWN) == 2


def test_without_a_fallback_the_workers_health_is_that_of_triton(
    processes: Processes, packaged: Packaged, start_server: Callable[[], TritonServer]
) -> None:
    server = start_server()
    worker = start_worker(processes, packaged, server, triton_fallback="replica")
    with grpc.insecure_channel(worker.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def is_serving() -> bool:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        assert is_serving()
        for pid in stub_pids(server):
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: not is_serving(), "the worker to say that it cannot serve")
        server.kill()
        start_server()
        wait_until(is_serving, "the worker to serve again")


def forward(packaged: Packaged, experts: RemoteExperts | None, tokens: Tensor) -> Tensor:
    length = tokens.shape[0]
    with torch.inference_mode():
        return Transformer(CONFIG, packaged.dense.weights, experts).forward(
            tokens, torch.arange(length), PackedCausal([length])
        )
