"""A step makes every tensor where the KV lies: none falls onto a default device by accident.

On a machine without a GPU that is proven by making `meta` the default device, whose tensors hold
nothing and can be mixed with no other.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.attention.core import Choice
from services.attention.runner import ModelRunner
from services.attention.scheduler import ScheduledChunk
from services.attention.sequence import DecodingParams, SequenceKey, Submission
from services.attention.sequence import Sequence as TokenSequence
from services.experts.holdings import Holdings
from tests.unit.model.configs import ALL
from tests.unit.model.conftest import DENSE, MIXTURE, trained_adapter
from understudy.errors import FailedPrecondition
from understudy.exchange.frame import FrameType, Header
from understudy.exchange.tensors import Request
from understudy.model.config import ModelConfig
from understudy.model.decoder import Compute, make_decoder, prepare_adapter
from understudy.model.ffn import FfnShards, Gates, PendingHidden, sum_partials
from understudy.model.kv_planes import DTYPES
from understudy.model.paged import PagedKv
from understudy.model.placing import (
    CPU,
    ExpertsOfHost,
    place_adapter,
    place_weights,
    resolve_device,
)
from understudy.model.safetensors_io import save_model
from understudy.model.weights import LoadedModel, load_model, random_weights

META = torch.device("meta")
VOCAB = 97
PROMPTS = ((5, 6, 7, 8, 9, 10, 11), (40, 41), (3,))
STEPS = ((7, 2, 1), (1, 1, 1))
"""Prompts whole, then a token for each; the last sequence decodes from the start."""


def loaded(config: ModelConfig, folder: Path, compute: Compute) -> LoadedModel:
    save_model(folder, config, random_weights(config, seed=7, deviation=0.3))
    return load_model(folder, compute=compute)


def submissions(adapter: str) -> list[Submission]:
    """Sequences that sample, that have a mask, and of which one has the adapter."""
    params = (
        DecodingParams(max_tokens=8, temperature=0.8, top_k=20, seed=1),
        DecodingParams(max_tokens=8, temperature=0.9, top_p=0.9, seed=2),
        DecodingParams(max_tokens=8),
    )
    return [
        Submission(
            key=SequenceKey(1, index), tokens=tokens, params=each, deadline_s=float("inf"),
            kv_root=b"r" * 32, tenant="t", adapter=adapter if index == 1 else "",
        )
        for index, (tokens, each) in enumerate(zip(PROMPTS, params, strict=True))
    ]  # fmt: skip


def steps(runner: ModelRunner, adapter: str = "") -> list[list[Choice | None]]:
    """Run both steps over three sequences; return what was chosen."""
    sequences = [TokenSequence(each, 0, 0.0) for each in submissions(adapter)]
    for index, sequence in enumerate(sequences):
        sequence.blocks.extend(range(2 * index, 2 * index + 2))
    sequences[1].mask = np.full(-(-VOCAB // 32), 0x5A5A5A5A, dtype=np.int32)
    chosen = []
    for counts in STEPS:
        chunks = [
            ScheduledChunk(sequence, count)
            for sequence, count in zip(sequences, counts, strict=True)
        ]
        found = runner.run(chunks)
        chosen.append(found)
        for sequence, count, choice in zip(sequences, counts, found, strict=True):
            assert choice is not None
            sequence.num_computed += count
            sequence.tokens.append(choice.token)
    return chosen


def runner_of(model: LoadedModel, kv_dtype: torch.dtype = torch.float32) -> ModelRunner:
    config = model.config
    decoder = make_decoder(config, model.stored, None, model.compute)
    adapters = {}
    if config.latent is None and config.query_rank is None:
        adapters = {"a": prepare_adapter(trained_adapter(config), model.compute)}
    kv = PagedKv(config, num_blocks=8, block_size=8, dtype=kv_dtype, device=CPU)
    return ModelRunner(decoder, kv, adapters, config.vocab_size)


@pytest.mark.parametrize("compute", ["reference", "exact", "fast"])
@pytest.mark.parametrize("name", ALL)
def test_a_step_of_every_family_makes_no_tensor_on_the_default_device(
    name: str, compute: Compute, tmp_path: Path
) -> None:
    model = loaded(ALL[name], tmp_path, compute)
    wanted = steps(runner_of(model))
    runner = runner_of(model)
    with META:
        assert steps(runner) == wanted


@pytest.mark.parametrize("kv_dtype", DTYPES)
@pytest.mark.parametrize("compute", ["reference", "exact"])
def test_nor_does_one_with_adapters_and_any_type_of_kv(
    compute: Compute, kv_dtype: str, tmp_path: Path
) -> None:
    model = loaded(DENSE, tmp_path, compute)
    wanted = steps(runner_of(model, DTYPES[kv_dtype]), "a")
    runner = runner_of(model, DTYPES[kv_dtype])
    with META:
        assert steps(runner, "a") == wanted
        exported = runner.export_block(0)
        runner.import_block(7, exported)
        assert runner.export_block(7) == exported


@pytest.mark.parametrize("compute", ["reference", "exact"])
@pytest.mark.parametrize(
    "config", [replace(DENSE, num_ffn_shards=2), MIXTURE], ids=["dense", "moe"]
)
def test_nor_does_an_expert_worker(config: ModelConfig, compute: Compute, tmp_path: Path) -> None:
    holdings = Holdings.take(loaded(config, tmp_path, compute), device=CPU)
    num_shards, num_choices = config.num_ffn_shards, config.num_choices(0)
    header = Header(
        FrameType.REQUEST, 0, 0, 0, 0, 0, num_tokens=3, hidden_size=32, num_choices=num_choices,
        first_shard=0, num_shards=num_shards,
    )  # fmt: skip
    hidden, ids, weights = torch.randn(3, 32), None, None
    if num_choices:
        ids, weights = torch.tensor([[0, 2], [1, 3], [2, 0]]), torch.rand(3, 2)
    request = Request((), hidden, ids, weights)
    wanted = holdings.compute(header, request)
    with META:
        assert torch.equal(holdings.compute(header, request), wanted)


def test_weights_and_adapters_are_brought_to_the_device_once(tmp_path: Path) -> None:
    model = loaded(replace(DENSE, num_ffn_shards=1), tmp_path, "exact")
    there = place_weights(model.stored, META)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert there[name] is there[name]
    assert set(there) == set(model.stored)
    assert make_decoder(model.config, there, None, "exact").config is model.config
    assert place_weights(model.stored, CPU)[name] is model.stored[name]
    adapter = prepare_adapter(trained_adapter(DENSE), "exact")
    moved = place_adapter(adapter, META)
    assert {tensor.device for tensor in moved.tensors.values()} == {META}
    assert moved.packed.keys() == adapter.packed.keys()
    assert place_adapter(adapter, CPU) is adapter


class _OnHost:
    """Expert workers: they only read what lies on the host."""

    def __init__(self, config: ModelConfig) -> None:
        self._shards = FfnShards(config, random_weights(config, seed=7))

    def submit(self, layer: int, hidden: torch.Tensor, gates: Gates | None) -> PendingHidden:
        return _Sum([self._shards.partial(layer, 0, hidden, gates)])


class _Sum:
    def __init__(self, partials: Sequence[torch.Tensor]) -> None:
        self._partials = partials

    def wait(self) -> torch.Tensor:
        return sum_partials(self._partials)


def test_sums_of_expert_workers_come_back_to_where_hidden_states_lie() -> None:
    experts, hidden = ExpertsOfHost(_OnHost(MIXTURE)), torch.randn(2, 32)
    gates = Gates(torch.tensor([[0, 1], [2, 3]]), torch.rand(2, 2))
    with META:
        total = experts.submit(0, hidden, gates).wait()
    assert total.device == hidden.device
    assert torch.equal(total, _OnHost(MIXTURE).submit(0, hidden, gates).wait())


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(FailedPrecondition, match="set the device to auto or cpu"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cpu") == CPU
