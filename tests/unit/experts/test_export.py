"""What the exporter writes, run without a compiler: the programs equal the model's arithmetic."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from services.experts.export import export_decoder, export_ffn, main
from services.experts.holdings import Holdings
from services.experts.packed_programs import packed_decoder_program
from services.experts.programs import decoder_program, swiglu_program
from tests.contract.experts.parts import DENSE, MIXTURE, seeded
from understudy.errors import FailedPrecondition
from understudy.model.attention import PackedCausal
from understudy.model.decoder import Compute, make_decoder
from understudy.model.ffn import FfnWeights, dense_weights, expert_weights, ffn_shard
from understudy.model.linear import Plain
from understudy.model.paged import PagedKv, PagedSequence
from understudy.model.safetensors_io import save_model
from understudy.model.traits import LatentShape
from understudy.model.transformer import Transformer
from understudy.model.weights import LoadedModel, load_model, random_weights
from understudy_kernels.packaging import read_bundle
from understudy_kernels.packaging.bundle import program_digest, read_program
from understudy_kernels.packaging.serving.runtime import PARTS

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
    assert named == {f"{n}.{s}.dense.0.{part}" for n in (1, 2) for s in (0, 3) for part in parts}
    whole = model.weights["model.layers.2.mlp.up_proj.weight"]
    assert torch.equal(written["2.3.dense.0.up"], whole[36:48])


def test_dense_layers_of_a_mixture_share_a_program_that_takes_any_inner_size(tmp_path: Path):
    config = replace(MIXTURE, dense_layers=(0,), expert_size=6)
    model = seeded(config)
    export_ffn(model, tmp_path)
    written = load_file(tmp_path / "weights.safetensors")
    program = read_program(tmp_path).module()
    hidden = torch.randn(2, config.hidden_size)
    for unit in ("0.0.dense", "1.1.3"):
        parts = [written[f"{unit}.0.{part}"] for part in ("gate", "up", "down")]
        expected = ffn_shard(FfnWeights(*map(Plain, parts)), hidden)
        assert torch.equal(program(hidden, *parts), expected)


def test_packed_weights_are_exported_as_they_lie_and_give_the_workers_bits(tmp_path: Path):
    save_model(tmp_path / "model", DENSE, seeded(DENSE).weights)
    plain = load_model(tmp_path / "model")
    packed = load_model(tmp_path / "model", "bfloat16", "exact")
    bundle = export_ffn(packed, tmp_path / "packed")
    assert bundle.arithmetic == "exact"
    assert bundle.name == Holdings.take(packed).package_name
    assert bundle.name != export_ffn(plain, tmp_path / "plain").name  # its values were rounded
    written = load_file(tmp_path / "packed" / "weights.safetensors")
    inputs = [written[f"1.2.dense.0.{part}"] for part in PARTS]
    assert all(part.dtype == torch.uint8 for part in inputs)
    hidden = torch.randn(3, DENSE.hidden_size)
    expected = Holdings.take(packed).weights.partial(1, 2, hidden, None)
    assert torch.equal(read_program(tmp_path / "packed").module()(hidden, *inputs), expected)


def test_feed_forwards_of_two_sizes_have_a_program_each(tmp_path: Path):
    config = replace(
        MIXTURE, family="qwen3_moe", has_qk_norm=True, dense_layers=(0,), expert_size=6
    )
    save_model(tmp_path / "model", config, seeded(config).weights)
    packed = load_model(tmp_path / "model", compute="exact")
    bundle = export_ffn(packed, tmp_path / "packed")
    assert len(set(bundle.program_digests)) == 2
    written = load_file(tmp_path / "packed" / "weights.safetensors")
    hidden = torch.randn(2, config.hidden_size)
    half = dense_weights(packed.stored, 0).slice(0, config.ffn_size // 2)
    expected = {"0.0.dense": half, "1.1.3": expert_weights(packed.stored, 1, 3)}
    for kind, (unit, weights) in enumerate(expected.items()):
        parts = [written[f"{unit}.{kind}.{part}"] for part in PARTS]
        program = read_program(tmp_path / "packed", kind).module()
        assert torch.equal(program(hidden, *parts), ffn_shard(weights, hidden))


def test_rounded_weights_stay_rounded_and_are_another_package(tmp_path: Path):
    save_model(tmp_path / "model", DENSE, seeded(DENSE).weights)
    model = load_model(tmp_path / "model", "bfloat16")
    bundle = export_ffn(model, tmp_path / "rounded")
    written = load_file(tmp_path / "rounded" / "weights.safetensors")
    assert written["0.0.dense.0.gate"].dtype == torch.bfloat16
    assert bundle.name == Holdings.take(model).package_name
    assert bundle.name != Holdings.take(load_model(tmp_path / "model")).package_name


def test_a_bundle_of_a_mixture_holds_experts_and_the_same_program(tmp_path: Path):
    config = replace(MIXTURE, ffn_size=12)
    mixture = export_ffn(seeded(config), tmp_path / "mixture", expert_ids=[2, 3])
    dense = export_ffn(seeded(DENSE), tmp_path / "dense", layers=[0])
    assert mixture.program_digests == dense.program_digests
    written = load_file(tmp_path / "mixture" / "weights.safetensors")
    assert {name.split(".")[2] for name in written if "." in name} == {"2", "3"}
    assert mixture.shape["num_experts_per_token"] == 2


def test_half_a_shard_is_not_exported(tmp_path: Path):
    with pytest.raises(FailedPrecondition, match="not whole shards"):
        export_ffn(seeded(MIXTURE), tmp_path, expert_ids=[1])


def test_a_saved_program_is_read_back_as_the_same_program(tmp_path: Path):
    bundle = export_ffn(seeded(DENSE), tmp_path)
    assert program_digest(read_program(tmp_path)) == bundle.program_digests[0]


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


@pytest.mark.parametrize("compute", ["exact", "fast"])
def test_a_packed_step_chooses_what_the_engine_chooses(tmp_path: Path, compute: Compute):
    config = replace(DENSE, has_qk_norm=True, family="qwen3")
    save_model(tmp_path, config, random_weights(config, seed=3, deviation=0.3))
    model = load_model(tmp_path, "int8", compute)
    step = packed_decoder_program(config, model.stored, is_exact=compute == "exact")
    run = step.program.module(check_guards=False)
    cache = torch.zeros(2, config.num_layers, 2, 64, config.num_kv_heads, config.head_dim)
    tables = torch.arange(2, dtype=torch.int32)[:, None]

    def advance(tokens: list[int], owners: list[int], positions: list[int], last: list[int]):
        owner, position = torch.tensor(owners), torch.tensor(positions)
        rows = (torch.tensor(tokens), position, owner * 64 + position, tables)
        rest = (owner.int(), (position + 1).int(), torch.tensor(last))
        with torch.inference_mode():
            return run(*rows, *rest, cache, list(step.weights.values())).tolist()

    chosen = [advance([3, 1, 4, 1, 5], [0, 0, 0, 1, 1], [0, 1, 2, 0, 1], [2, 4])]
    for turn in range(3):
        chosen.append(advance(chosen[-1], [0, 1], [3 + turn, 2 + turn], [0, 1]))
    expected = [decoded(model, prompt, 4) for prompt in ([3, 1, 4], [1, 5])]
    assert [list(row) for row in zip(*chosen, strict=True)] == expected


def decoded(model: LoadedModel, prompt: list[int], num_steps: int) -> list[int]:
    decoder = make_decoder(model.config, model.stored, None, model.compute)
    kv, tokens = PagedKv(model.config, 4, 16), list(prompt)
    with torch.inference_mode():
        for _ in range(num_steps):
            sequence = PagedSequence([0, 1], 0, len(tokens))
            hidden = decoder.advance(torch.tensor(tokens), kv, [sequence])
            tokens.append(int(decoder.logits(hidden[-1:]).argmax()))
    return tokens[len(prompt) :]


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
