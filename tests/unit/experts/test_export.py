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
    export_decoder,
    export_ffn,
    main,
    swiglu_program,
)
from services.experts.holdings import Holdings
from tests.contract.experts.parts import DENSE, MIXTURE, seeded
from understudy.errors import FailedPrecondition
from understudy.model.attention import PackedCausal
from understudy.model.ffn import FfnWeights, ffn_shard
from understudy.model.linear import Plain
from understudy.model.safetensors_io import save_model
from understudy.model.traits import LatentShape
from understudy.model.transformer import Transformer
from understudy.model.weights import LoadedModel, load_model
from understudy_kernels.packaging import read_bundle
from understudy_kernels.packaging.bundle import program_digest, read_program

LATENT = replace(
    DENSE,
    family="deepseek_v2",
    num_kv_heads=4,
    latent=LatentShape(kv_rank=6, nope_dim=4, rope_dim=4, value_dim=8),
)


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
        expected = ffn_shard(FfnWeights(*map(Plain, second)), hidden)
        assert torch.equal(program.module()(hidden, *second), expected)


def test_a_bundle_holds_the_units_of_its_layers_and_shards(tmp_path: Path):
    model = seeded(DENSE)
    bundle = export_ffn(model, tmp_path / "dense", layers=[1, 2], expert_ids=[0, 3])
    assert bundle == read_bundle(tmp_path / "dense")
    assert bundle.name == "ffn-abababababab-l1-2-s0-3"
    assert bundle.name == Holdings.take(model, [1, 2], [0, 3]).package_name
    written = load_file(tmp_path / "dense" / "weights.safetensors")
    named = {name for name in written if not name.startswith("__fill")}
    parts = ("gate", "up", "down")
    assert named == {f"{n}.{s}.dense.{part}" for n in (1, 2) for s in (0, 3) for part in parts}
    whole = model.weights["model.layers.2.mlp.up_proj.weight"]
    assert torch.equal(written["2.3.dense.up"], whole[36:48])


def test_dense_layers_of_a_mixture_share_a_program_that_takes_any_inner_size(tmp_path: Path):
    config = replace(MIXTURE, dense_layers=(0,), expert_size=6)
    model = seeded(config)
    export_ffn(model, tmp_path)
    written = load_file(tmp_path / "weights.safetensors")
    program = read_program(tmp_path).module()
    hidden = torch.randn(2, config.hidden_size)
    for unit in ("0.0.dense", "1.1.3"):
        parts = [written[f"{unit}.{part}"] for part in ("gate", "up", "down")]
        expected = ffn_shard(FfnWeights(*map(Plain, parts)), hidden)
        assert torch.equal(program(hidden, *parts), expected)


def test_packed_weights_are_exported_with_their_values_and_the_same_name(tmp_path: Path):
    save_model(tmp_path / "model", DENSE, seeded(DENSE).weights)
    plain = load_model(tmp_path / "model")
    packed = load_model(tmp_path / "model", compute="exact")
    bundles = [
        export_ffn(model, tmp_path / name) for name, model in (("plain", plain), ("packed", packed))
    ]
    assert bundles[0] == bundles[1]
    assert Holdings.take(packed).package_name == bundles[0].name
    first, second = (
        load_file(tmp_path / name / "weights.safetensors") for name in ("plain", "packed")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rounded_weights_stay_rounded_and_are_another_package(tmp_path: Path):
    save_model(tmp_path / "model", DENSE, seeded(DENSE).weights)
    model = load_model(tmp_path / "model", "bfloat16")
    bundle = export_ffn(model, tmp_path / "rounded")
    written = load_file(tmp_path / "rounded" / "weights.safetensors")
    assert written["0.0.dense.gate"].dtype == torch.bfloat16
    assert bundle.name == Holdings.take(model).package_name
    assert bundle.name != Holdings.take(load_model(tmp_path / "model")).package_name


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


@pytest.mark.parametrize(
    ("config", "words"),
    [(MIXTURE, "mixtral is a mixture"), (LATENT, "attention keeps latents")],
    ids=["mixture", "latents"],
)
def test_a_whole_model_that_cannot_be_packaged_is_named(tmp_path: Path, config, words: str):
    with pytest.raises(FailedPrecondition, match=words):
        export_decoder(seeded(config), tmp_path)


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
