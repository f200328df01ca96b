from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.model.configs import ALL, FINE, LONGCAT
from tests.unit.model.conftest import Tiny, assert_near
from understudy.errors import FailedPrecondition, Internal
from understudy.model.adapter import (
    Adapter,
    AdapterBatch,
    AdapterGroup,
    load_adapter,
    new_adapter,
    save_adapter,
)
from understudy.model.attention import PackedCausal
from understudy.model.config import ModelConfig
from understudy.model.ffn import FfnShards
from understudy.model.safetensors_io import write_file
from understudy.model.shapes import layer_prefix
from understudy.model.transformer import Transformer
from understudy.model.weights import random_weights

BASE = "0" * 64


def _adapter(config: ModelConfig, seed: int, rank: int = 4) -> Adapter:
    fresh = new_adapter(config, name="a", rank=rank, alpha=8, base_digest=BASE, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        key: value if key.endswith("down") else torch.randn(value.shape, generator=generator)
        for key, value in fresh.tensors.items()
    }
    return replace(fresh, tensors=tensors)


def _merged(tiny: Tiny, adapter: Adapter) -> Tiny:
    weights = dict(tiny.weights)
    for key in adapter.tensors:
        _, index, projection, part = key.split(".")
        if part == "down":
            down, up = adapter.factors(int(index), projection)
            prefix, place = layer_prefix(tiny.config, int(index))
            name = f"{prefix}.self_attn{place}.{projection}.weight"
            weights[name] = weights[name] + adapter.scale * up.dense() @ down.dense()
    return Tiny(tiny.config, weights)


def test_rows_of_one_batch_use_their_own_adapters(tiny: Tiny) -> None:
    one, two = _adapter(tiny.config, 1), _adapter(tiny.config, 2, rank=3)
    lengths = [5, 4, 6, 3]
    owners: list[Adapter | None] = [one, None, two, one]
    tokens = torch.arange(18)
    positions = torch.cat([torch.arange(length) for length in lengths])
    rows = [owner for owner, length in zip(owners, lengths, strict=True) for _ in range(length)]
    model = Transformer(tiny.config, tiny.weights)

    batch = AdapterBatch.of_rows(rows)
    mixed = model.logits(model.forward(tokens, positions, PackedCausal(lengths), batch))

    for owner, part, text in zip(owners, mixed.split(lengths), tokens.split(lengths), strict=True):
        alone = tiny if owner is None else _merged(tiny, owner)
        assert_near(part, alone.logits(text), tolerance=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_adapter_of_every_family_equals_merged_weights(name: str) -> None:
    tiny = Tiny(ALL[name], random_weights(ALL[name], seed=7, deviation=0.3))
    adapter, tokens = _adapter(tiny.config, 1), torch.arange(9)
    model = Transformer(tiny.config, tiny.weights)

    batch = AdapterBatch([AdapterGroup(adapter)])
    adapted = model.forward(tokens, torch.arange(9), PackedCausal([9]), batch)

    assert_near(model.logits(adapted), _merged(tiny, adapter).logits(tokens), tolerance=1e-4)


def test_adapter_of_latent_attention_has_its_projections_and_no_others() -> None:
    keys = _adapter(FINE, 1).tensors
    projections = {key.split(".")[2] for key in keys}

    assert projections == {"q_a_proj", "kv_a_proj_with_mqa", "o_proj"}
    assert {key.split(".")[1] for key in _adapter(LONGCAT, 1).tensors} == set("0123")


def test_adapter_of_another_kind_of_attention_is_refused(tmp_path: Path) -> None:
    save_adapter(_adapter(ALL["llama"], 1), tmp_path / "a.safetensors")

    with pytest.raises(FailedPrecondition, match=r"lacks the tensor 'layers\.0\.q_a_proj\.down'"):
        load_adapter(tmp_path / "a.safetensors", FINE, BASE)


def test_rows_without_adapter_are_untouched_bit_for_bit(dense: Tiny) -> None:
    batch = AdapterBatch([AdapterGroup(_adapter(dense.config, 1), torch.tensor([0, 2]))])
    hidden, output = torch.randn(4, 32), torch.randn(4, 32)

    changed = batch.apply(0, "q_proj", hidden, output)

    assert torch.equal(changed[[1, 3]], output[[1, 3]])
    assert not torch.equal(changed[[0, 2]], output[[0, 2]])


def test_batches_are_grouped_by_adapter(dense_config: ModelConfig) -> None:
    adapter = _adapter(dense_config, 1)
    hidden, output = torch.randn(3, 32), torch.zeros(3, 32)

    assert AdapterBatch.of_rows([None, None]) is None
    whole, part = AdapterBatch.of_rows([adapter] * 3), AdapterBatch.of_rows([adapter, None, None])
    assert whole is not None
    assert part is not None
    everywhere = whole.apply(0, "q_proj", hidden, output)
    assert_near(part.apply(0, "q_proj", hidden, output)[:1], everywhere[:1])
    with pytest.raises(Internal, match="must each name their rows"):
        AdapterBatch([AdapterGroup(adapter), AdapterGroup(adapter, torch.tensor([0]))])


def test_fresh_adapter_changes_nothing_and_learns(dense: Tiny) -> None:
    adapter = new_adapter(dense.config, name="a", rank=4, alpha=8, base_digest=BASE, seed=1)
    for tensor in adapter.tensors.values():
        tensor.requires_grad_()
    tokens = torch.arange(9)
    model = Transformer(replace(dense.config, num_ffn_shards=1), dense.weights)

    batch = AdapterBatch([AdapterGroup(adapter)])
    hidden = model.forward(tokens, torch.arange(9), PackedCausal([9]), batch)
    logits = model.logits(hidden)
    torch.nn.functional.cross_entropy(logits, tokens.roll(-1)).backward()

    assert_near(logits, dense.logits(tokens), tolerance=1e-4)
    for name, tensor in adapter.tensors.items():
        assert tensor.grad is not None, name
        # `up` is zero at the start, so only it has a slope in the first step.
        assert (tensor.grad.abs().sum() > 0) == name.endswith(".up"), name


def test_feed_forwards_are_the_same_whatever_the_adapter(dense: Tiny) -> None:
    merged = _merged(dense, _adapter(dense.config, 1))
    hidden = torch.ones(2, 32)

    plain, adapted = (FfnShards(t.config, t.weights) for t in (dense, merged))
    assert torch.equal(plain.partial(1, 0, hidden, None), adapted.partial(1, 0, hidden, None))


def test_saved_adapter_loads_equal_with_its_digest(dense: Tiny, tmp_path: Path) -> None:
    adapter = _adapter(dense.config, 1)
    save_adapter(adapter, tmp_path / "a.safetensors")

    loaded = load_adapter(tmp_path / "a.safetensors", dense.config, BASE)

    assert (loaded.name, loaded.rank, loaded.alpha, loaded.base_digest) == ("a", 4, 8.0, BASE)
    assert all(torch.equal(loaded.tensors[name], t) for name, t in adapter.tensors.items())
    assert loaded.digest == adapter.digest


def test_digest_differs_with_content_scale_and_base_but_not_with_name(
    dense_config: ModelConfig,
) -> None:
    adapter = _adapter(dense_config, 1)
    digests = {
        adapter.digest,
        _adapter(dense_config, 2).digest,
        replace(adapter, alpha=9.0).digest,
        replace(adapter, base_digest="1" * 64).digest,
    }

    assert len(digests) == 4
    assert replace(adapter, name="b").digest == adapter.digest


def test_half_precision_file_is_half_as_large(dense: Tiny, tmp_path: Path) -> None:
    adapter = _adapter(dense.config, 1)
    save_adapter(adapter, tmp_path / "a.safetensors", torch.float16)

    loaded = load_adapter(tmp_path / "a.safetensors", dense.config)

    assert all(tensor.dtype == torch.float32 for tensor in loaded.tensors.values())
    name = "layers.0.q_proj.up"
    assert_near(loaded.tensors[name], adapter.tensors[name], tolerance=2e-3)


def _metadata(**changes: str) -> dict[str, str]:
    whole = {
        "format": "understudy-lora-1",
        "name": "a",
        "rank": "4",
        "alpha": "8.0",
        "base_digest": BASE,
    }
    return {key: value for key, value in {**whole, **changes}.items() if value}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "peft"}, "no adapter|not an adapter"),
        ({"rank": "four"}, "bad adapter metadata"),
        ({"rank": ""}, "bad adapter metadata: 'rank'"),
        ({"rank": "0"}, "rank is at least 1"),
        ({"alpha": "nan"}, "alpha"),
        ({"rank": "5"}, r"'layers\.0\.q_proj\.down' of shape \(4, 32\); rank 5"),
        ({"base_digest": "f" * 64}, "was made for base ffffffffffff"),
    ],
)
def test_adapter_with_wrong_metadata_is_refused(
    changes: dict[str, str], said: str, dense: Tiny, tmp_path: Path
) -> None:
    tensors = dict(_adapter(dense.config, 1).tensors)
    write_file(tmp_path / "a.safetensors", tensors, _metadata(**changes))

    with pytest.raises(FailedPrecondition, match=said):
        load_adapter(tmp_path / "a.safetensors", dense.config, BASE)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("layers.1.v_proj.up", None, "lacks the tensor 'layers.1.v_proj.up'"),
        ("layers.1.v_proj.up", torch.ones(16, 3), r"of shape \(16, 3\); rank 4"),
        ("layers.1.v_proj.up", torch.full((16, 4), torch.inf), "'layers.1.v_proj.up'.*not finite"),
        ("layers.3.v_proj.up", torch.ones(16, 4), "unknown tensor 'layers.3.v_proj.up'"),
        ("layers.0.up_proj.up", torch.ones(16, 4), "unknown tensor 'layers.0.up_proj.up'"),
    ],
)
def test_adapter_with_a_faulty_tensor_is_refused_by_name(
    name: str, value: Tensor | None, said: str, dense: Tiny, tmp_path: Path
) -> None:
    tensors = dict(_adapter(dense.config, 1).tensors)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    write_file(tmp_path / "a.safetensors", tensors, _metadata())

    with pytest.raises(FailedPrecondition, match=said):
        load_adapter(tmp_path / "a.safetensors", dense.config)


def test_file_that_is_no_adapter_is_refused(dense: Tiny, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"nothing")

    with pytest.raises(FailedPrecondition, match=r"a\.safetensors"):
        load_adapter(tmp_path / "a.safetensors", dense.config)
