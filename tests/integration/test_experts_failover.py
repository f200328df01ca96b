"""Real expert workers and a controller; one worker is killed with -9 while it is being used."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from services.attention.clients import RemoteExperts
from services.attention.dispatch import Call
from tests.integration.processes import Processes, Running, wait_until
from understudy.errors import Unavailable
from understudy.model.attention import PackedCausal
from understudy.model.config import ModelConfig
from understudy.model.decoder import resolve_compute
from understudy.model.safetensors_io import save_model
from understudy.model.transformer import Transformer
from understudy.model.weights import LoadedModel, load_model, random_weights

CONFIG = ModelConfig(
    family="llama",
    vocab_size=97,
    hidden_size=64,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn_size=128,
    max_positions=256,
)
NUM_STEPS = 40
KILL_AT_STEP = 10


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    directory = tmp_path / "tiny"
    directory.mkdir()
    save_model(directory, CONFIG, random_weights(CONFIG, seed=7, deviation=0.3))
    return load_model(directory, compute=resolve_compute("exact"))


@pytest.fixture
def workers(processes: Processes, model: LoadedModel, tmp_path: Path) -> list[Running]:
    return [processes.start("experts", model=str(tmp_path / "tiny")) for _ in range(2)]


@pytest.fixture
def remote(
    processes: Processes, model: LoadedModel, workers: list[Running]
) -> Iterator[RemoteExperts]:
    pools = [{"pool": "llm", "replicas": [worker.address for worker in workers]}]
    controller = processes.start("controller", pools=json.dumps(pools), probe_interval_s="0.2")
    experts = RemoteExperts(CONFIG, model.ffn_digest, controller.address, "llm")
    try:
        experts.start(60.0)
        wait_until(lambda: experts.num_connected == 2, "both expert workers to be connected")
        yield experts
    finally:
        experts.close()


def forward(model: LoadedModel, experts: RemoteExperts | None, tokens: Tensor) -> Tensor:
    length = tokens.shape[0]
    with torch.inference_mode():
        return Transformer(CONFIG, model.stored, experts).forward(
            tokens, torch.arange(length), PackedCausal([length])
        )


def test_a_worker_killed_mid_step_changes_no_bit_and_fails_no_step(
    model: LoadedModel,
    workers: list[Running],
    remote: RemoteExperts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = [forward(model, None, _tokens(step)) for step in range(NUM_STEPS)]
    wait, num_calls = Call.wait, 0

    def kill_while_waiting(call: Call) -> Tensor:
        nonlocal num_calls
        num_calls += 1
        if num_calls == KILL_AT_STEP * CONFIG.num_layers + 2:
            workers[0].child.kill()
        return wait(call)

    monkeypatch.setattr(Call, "wait", kill_while_waiting)
    for step in range(NUM_STEPS):
        remote.begin_step(step, [], math.inf)
        assert torch.equal(forward(model, remote, _tokens(step)), expected[step])
    assert workers[0].child.exit_code() == -9
    assert remote.num_connected == 1


def test_a_killed_worker_that_is_started_again_is_used_again(
    processes: Processes,
    model: LoadedModel,
    workers: list[Running],
    remote: RemoteExperts,
    tmp_path: Path,
) -> None:
    for worker in workers:
        worker.child.kill()
    wait_until(lambda: remote.num_connected == 0, "both streams to end")
    assert not remote.is_ready
    processes.start("experts", port=workers[0].port, model=str(tmp_path / "tiny"))
    wait_until(lambda: remote.is_ready, "the worker to be dialled again")
    tokens = _tokens(3)
    assert torch.equal(forward(model, remote, tokens), forward(model, None, tokens))


def test_a_pool_without_workers_is_unavailable_with_a_sentence(
    processes: Processes, model: LoadedModel
) -> None:
    pools = [{"pool": "llm", "replicas": ["127.0.0.1:1"]}]
    controller = processes.start("controller", pools=json.dumps(pools))
    experts = RemoteExperts(CONFIG, model.ffn_digest, controller.address, "llm")
    try:
        with pytest.raises(Unavailable, match="Start them and the controller"):
            experts.start(1.0)
    finally:
        experts.close()


def _tokens(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, CONFIG.vocab_size, (1 + step % 7,), generator=generator)
