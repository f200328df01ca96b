"""What the exporter writes, run without a compiler: the programs equal the model's arithmetic."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from services.experts.export import (
    decoder_program,
    export_ffn,
    main,
    swiglu_program,
)
from services.experts.holdings import Holdings
from tests.contract.experts.parts import DENSE, MIXTURE, seeded
from understudy.errors import FailedPrecondition
from understudy.model.attention import PackedCausal
from understudy.model.ffn import FfnWeights, ffn_shard
from understudy.model.safetensors_io import save_model
from understudy.model.transformer import Transformer
from understudy.model.weights import LoadedModel
from understudy_kernels.packaging import read_bundle
from understudy_kernels.packaging.bundle import program_digest, read_program


def test_the_swiglu_program_takes_any_number_of_tokens_and_any_weights():
    generator = torch.Generator().manual_seed(1)
    first, second = (
        [torch.randn(6, 4, generator=generator) for _ in range(2)]
        + [torch.randn(4, 6, generator=generator)]
        for _ in range(2)
    )
    program = swiglu_program(first)
    for num_tokens in (1, 5):
        hidden = torch.randn(num_tokens, 4, generator=generator)
        assert torch.equal(
            program.module()(hidden, *second), ffn_shard(FfnWeights(*second), hidden)
        )


def test_a_bundle_holds_the_units_of_its_layers_and_shards(tmp_path: Path):
    model = seeded(DENSE)
    bundle = export_ffn(model, tmp_path / "dense", layers=[1, 2], expert_ids=[0, 3])
    assert bundle == read_bundle(tmp_path / "dense")
    assert bundle.name == "ffn-abababababab-l1-2-s0-3"
    assert bundle.name == Holdings.take(model, [1, 2], [0, 3]).package_name
    written = load_file(tmp_path / "dense" / "weights.safetensors")
    named = {name for name in written if not name.startswith("__fill")}
    parts = ("gate", "up", "down")
    assert named == {f"{n}.{s}.0.{part}" for n in (1, 2) for s in (0, 3) for part in parts}
    whole = model.weights["model.layers.2.mlp.up_proj.weight"]
    assert torch.equal(written["2.3.0.up"], whole[36:48])


def test_a_bundle_of_a_mixture_holds_experts_and_the_same_program(tmp_path: Path):
    config = replace(MIXTURE, ffn_size=12)
    mixture = export_ffn(seeded(config), tmp_path / "mixture", expert_ids=[2, 3])
    dense = export_ffn(seeded(DENSE), tmp_path / "dense", layers=[0])
    assert mixture.program_digest == dense.program_digest
    written = load_file(tmp_path / "mixture" / "weights.safetensors")
    assert {name.split(".")[2] for name in written if "." in name} == {"2", "3"}
    assert mixture.shape["num_experts_per_token"] == 2


def test_half_a_shard_is_not_exported(tmp_path: Path):
    with pytest.raises(FailedPrecondition, match="not whole shards"):
        export_ffn(seeded(MIXTURE), tmp_path, expert_ids=[1])


def test_a_saved_program_is_read_back_as_the_same_program(tmp_path: Path):
    bundle = export_ffn(seeded(DENSE), tmp_path)
    assert program_digest(read_program(tmp_path)) == bundle.program_digest


def greedy(model: LoadedModel, prompt: list[int], num_steps: int) -> list[int]:
    transformer, tokens = Transformer(model.config, model.weights), list(prompt)
    for _ in range(num_steps):
        row = torch.arange(len(tokens))
        hidden = transformer.forward(torch.tensor(tokens), row, PackedCausal([len(tokens)]))
        tokens.append(int(transformer.logits(hidden[-1:]).argmax()))
    return tokens[len(prompt) :]


def test_a_step_of_the_decoder_program_chooses_what_the_model_chooses():
    config = replace(DENSE, num_ffn_shards=1)
    model = LoadedModel(config, seeded(DENSE).weights, "ab" * 32)
    # The guards note that rows of the example had several tokens; the graph does not need that, as
    # the single-token steps below show, and a compiled program checks none.
    step = decoder_program(config, model.weights).module(check_guards=False)
    cache = torch.zeros(config.num_layers, 2, 1, 64, config.num_kv_heads, config.head_dim)
    prompt, weights = [3, 1, 4, 1, 5], list(model.weights.values())

    def run(tokens: Tensor, positions: Tensor) -> int:
        last = torch.tensor([tokens.shape[1] - 1])
        with torch.inference_mode():
            chosen, rows = step(tokens, positions, last, cache, weights)
            cache[:, :, :, positions[0]] = rows
        return int(chosen[0])

    answer = [run(torch.tensor([prompt]), torch.arange(5)[None])]
    for position in range(5, 8):
        answer.append(run(torch.tensor([answer[-1:]]), torch.tensor([[position]])))
    assert answer == greedy(model, prompt, 4)


def test_the_command_writes_a_bundle_and_prints_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_model(tmp_path / "model", DENSE, seeded(DENSE).weights)
    arguments = ["ffn", "--model", str(tmp_path / "model"), "--bundle", str(tmp_path / "bundle")]
    assert main([*arguments, "--layers", "0-1"]) == 0
    name = capsys.readouterr().out.strip()
    assert name.endswith("-l0-1-s0-1-2-3")
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["name"] == name


def test_the_command_says_in_a_sentence_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_model(tmp_path / "model", DENSE, seeded(DENSE).weights)
    arguments = ["ffn", "--model", str(tmp_path / "model"), "--bundle", str(tmp_path / "bundle")]
    assert main([*arguments, "--layers", "2-3"]) == 1
    assert "below 3" in capsys.readouterr().err
