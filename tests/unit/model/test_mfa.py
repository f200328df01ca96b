"""Step-3 against the equations of its papers, written out head by head in double precision."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.model.configs import STEP3
from tests.unit.model.conftest import assert_logits_near
from tests.unit.model.oracles import BLOCK_SIZE, decode, paged_logits
from understudy.errors import FailedPrecondition
from understudy.model.compiled import CompiledDecoder
from understudy.model.decoder import Decoder, make_decoder
from understudy.model.families import read_hf, write_hf
from understudy.model.paged import PagedKv
from understudy.model.safetensors_io import write_file
from understudy.model.weights import LoadedModel, load_model, random_weights

LENGTH = 11
TOKENS = torch.randint(3, 97, (LENGTH,), generator=torch.Generator().manual_seed(1))
BLOCKS = [6, 1, 3, 0, 7, 2]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write files as Step-3 publishes them: the experts of a layer stacked in one tensor."""
    directory = tmp_path_factory.mktemp("step3")
    published: dict[str, Tensor] = {}
    weights = random_weights(STEP3, seed=5, deviation=0.3)
    for name, weight in weights.items():
        if ".mlp.experts." not in name:
            theirs = name.replace(".mlp.gate.", ".moe.gate.")
            published[theirs.replace(".mlp.shared_experts.", ".share_expert.")] = weight
    for part in ("gate", "up", "down"):
        prefix, suffix = "model.layers.1.mlp.experts", f"{part}_proj.weight"
        stack = torch.stack([weights[f"{prefix}.{e}.{suffix}"] for e in range(STEP3.num_experts)])
        published[f"model.layers.1.moe.{suffix}"] = stack
    write_file(directory / "model.safetensors", published, {"format": "pt"})
    raw = {**write_hf(STEP3), "moe_layers_enum": "1"}
    (directory / "config.json").write_text(json.dumps(raw), "utf-8")
    return directory


@pytest.fixture(scope="module")
def loaded(directory: Path) -> LoadedModel:
    return load_model(directory)


@pytest.fixture(scope="module", params=["reference", "exact"])
def model(directory: Path, request: pytest.FixtureRequest) -> Decoder:
    packed = load_model(directory, compute=request.param)
    decoder = make_decoder(STEP3, packed.stored, None, packed.compute)
    assert isinstance(decoder, CompiledDecoder) == (request.param == "exact")
    return decoder


def _kv() -> PagedKv:
    return PagedKv(STEP3, 8, BLOCK_SIZE)


def _norm(rows: Tensor, weight: Tensor) -> Tensor:
    return rows / (rows.square().mean(-1, keepdim=True) + STEP3.rms_norm_eps).sqrt() * weight


def _rotated(rows: Tensor) -> Tensor:
    dim = rows.shape[1]
    pairs = torch.arange(dim // 2, dtype=torch.float64)
    phase = torch.outer(
        torch.arange(rows.shape[0], dtype=torch.float64), STEP3.rope_theta ** (-2 * pairs / dim)
    )
    first, second = rows[:, : dim // 2], rows[:, dim // 2 :]
    cosine, sine = phase.cos(), phase.sin()
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=1)


def _mfa(x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    # One shared down-projection S_q, normed; a C x C matrix Q_c per head; one key, one value.
    dim = STEP3.head_dim
    low = _norm(x @ w["q_proj.weight"].T, w["inter_norm.weight"])
    key, value = _rotated(x @ w["k_proj.weight"].T), x @ w["v_proj.weight"].T
    future = torch.ones(len(x), len(x)).triu(1).bool()
    total = torch.zeros_like(x)
    for head in range(STEP3.num_heads):
        part = slice(head * dim, (head + 1) * dim)
        query = _rotated(low @ w["wq.weight"][part].T)
        scores = (query @ key.T / math.sqrt(dim)).masked_fill(future, -torch.inf)
        total = total + scores.softmax(-1) @ value @ w["o_proj.weight"][:, part].T
    return total


def _swiglu(x: Tensor, w: Mapping[str, Tensor], prefix: str) -> Tensor:
    gate, up, down = (w[f"{prefix}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    inner = x @ gate.T
    return (inner * inner.sigmoid() * (x @ up.T)) @ down.T


def _mixture(x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    probabilities = (x @ w["mlp.gate.weight"].T).softmax(-1)
    rows = []
    for row, chances in zip(x, probabilities, strict=True):
        total = _swiglu(row, w, "mlp.shared_experts")
        for expert in chances.argsort(descending=True)[: STEP3.num_experts_per_token].tolist():
            total = total + chances[expert] * _swiglu(row, w, f"mlp.experts.{expert}")
        rows.append(total)
    return torch.stack(rows)


def _reference(weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    doubles = {name: weight.double() for name, weight in weights.items()}
    x = doubles["model.embed_tokens.weight"][tokens]
    for layer in range(STEP3.num_layers):
        prefix = f"model.layers.{layer}."
        w = {name.removeprefix(prefix): v for name, v in doubles.items() if prefix in name}
        attention = {name.removeprefix("self_attn."): v for name, v in w.items()}
        x = x + _mfa(_norm(x, w["input_layernorm.weight"]), attention)
        normed = _norm(x, w["post_attention_layernorm.weight"])
        x = x + (_mixture(normed, w) if STEP3.is_mixture(layer) else _swiglu(normed, w, "mlp"))
    logits = _norm(x, doubles["model.norm.weight"]) @ doubles["lm_head.weight"].T
    return logits.float()


def test_published_files_are_read_as_the_config_they_describe(loaded: LoadedModel) -> None:
    assert loaded.config == STEP3
    assert loaded.weights.keys() == random_weights(STEP3, seed=5).keys()


@pytest.mark.parametrize("ends", [(LENGTH,), (4, 5, LENGTH)], ids=["whole", "chunks"])
def test_logits_equal_the_equations(
    model: Decoder, loaded: LoadedModel, ends: tuple[int, ...]
) -> None:
    logits = paged_logits(model, _kv(), TOKENS, BLOCKS, *ends)

    assert_logits_near(logits, _reference(loaded.weights, TOKENS))


def test_greedy_tokens_equal_the_equations(model: Decoder, loaded: LoadedModel) -> None:
    ours = decode(model, _kv(), TOKENS, BLOCKS, 0)

    expected = _reference(loaded.weights, ours).argmax(-1)
    assert torch.equal(ours[LENGTH:], expected[LENGTH - 1 : -1])


def test_exported_blocks_are_continued_by_another_worker(model: Decoder) -> None:
    here, there = _kv(), _kv()
    paged_logits(model, here, TOKENS, BLOCKS, 5, 10)

    moved = [5, 4, 0, 1, 2, 3]
    for source, target in zip(BLOCKS[:3], moved[:3], strict=True):
        there.import_block(target, here.export_block(source))

    undisturbed = decode(model, _kv(), TOKENS, BLOCKS, 0)
    assert torch.equal(decode(model, there, TOKENS, moved, 10), undisturbed)


def test_recomputed_kv_continues_with_the_same_tokens(model: Decoder) -> None:
    undisturbed, kv = decode(model, _kv(), TOKENS, BLOCKS, 0), _kv()
    half_way = undisturbed[: LENGTH + 4]
    paged_logits(model, kv, half_way, BLOCKS, len(half_way) - 1)

    again = decode(model, kv, half_way, BLOCKS, len(half_way) - 1)

    assert torch.equal(again[: len(undisturbed)], undisturbed)


def test_a_token_caches_one_key_and_one_value(loaded: LoadedModel) -> None:
    assert [(e.num_heads, e.width) for e in loaded.config.cache_entries] == [(1, 8), (1, 8)]


def test_layers_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(FailedPrecondition, match="'1,x' for 'moe_layers_enum'"):
        read_hf({**write_hf(STEP3), "moe_layers_enum": "1,x"})
