"""Every family against transformers: whole, in chunks, decoded, resumed and recomputed."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.model.conftest import assert_logits_near, assert_near
from tests.unit.model.oracles import (
    BLOCK_SIZE,
    CASES,
    decode,
    generated,
    load_saved,
    paged_logits,
    reference,
)
from understudy.model.attention import PackedCausal
from understudy.model.decoder import Decoder, make_decoder, resolve_compute
from understudy.model.families import read_hf, write_hf
from understudy.model.paged import PagedKv
from understudy.model.safetensors_io import save_model
from understudy.model.transformer import Transformer
from understudy.model.weights import load_model

LENGTH = 13
TOKENS = torch.randint(3, 97, (LENGTH,), generator=torch.Generator().manual_seed(1))
BLOCKS = [6, 1, 3, 0, 7, 2]


@dataclass(frozen=True)
class Oracle:
    """What transformers makes of `TOKENS` with the weights that it saved."""

    directory: Path
    logits: Tensor
    continued: Tensor


@dataclass(frozen=True)
class Pair:
    """A loaded model and what transformers makes of `TOKENS` with the same weights."""

    model: Decoder
    logits: Tensor
    continued: Tensor

    def new_kv(self) -> PagedKv:
        return PagedKv(self.model.config, 8, BLOCK_SIZE)


@pytest.fixture(scope="module", params=CASES)
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    model, directory = reference(request.param), tmp_path_factory.mktemp("model")
    model.save_pretrained(directory)
    with torch.inference_mode():
        logits = model(TOKENS[None]).logits[0]
    return Oracle(directory, logits, generated(model, TOKENS))


@pytest.fixture(scope="module", params=["reference", "exact"])
def pair(request: pytest.FixtureRequest, oracle: Oracle) -> Pair:
    compute = resolve_compute(request.param)
    loaded = load_model(oracle.directory, compute=compute)
    model = make_decoder(loaded.config, loaded.stored, None, compute)
    return Pair(model, oracle.logits, oracle.continued)


def test_logits_of_a_whole_prompt_equal_transformers(oracle: Oracle) -> None:
    loaded = load_model(oracle.directory)
    model = Transformer(loaded.config, loaded.stored)
    with torch.inference_mode():
        hidden = model.forward(TOKENS, torch.arange(LENGTH), PackedCausal([LENGTH]))
        logits = model.logits(hidden)

    assert_near(logits, oracle.logits, tolerance=1e-4)


@pytest.mark.parametrize(
    "ends", [(LENGTH,), (4, 5, 11, LENGTH), tuple(range(1, LENGTH + 1))], ids=len
)
def test_logits_over_paged_kv_equal_transformers(pair: Pair, ends: tuple[int, ...]) -> None:
    logits = paged_logits(pair.model, pair.new_kv(), TOKENS, BLOCKS, *ends)

    assert_logits_near(logits, pair.logits)


def test_greedy_tokens_equal_transformers(pair: Pair) -> None:
    assert torch.equal(decode(pair.model, pair.new_kv(), TOKENS, BLOCKS, 0), pair.continued)


def test_exported_blocks_are_continued_by_another_worker(pair: Pair) -> None:
    here, there = pair.new_kv(), pair.new_kv()
    paged_logits(pair.model, here, TOKENS, BLOCKS, 5, 12)

    moved = [5, 4, 0, 1, 2, 3]
    for source, target in zip(BLOCKS[:3], moved[:3], strict=True):
        there.import_block(target, here.export_block(source))

    assert torch.equal(decode(pair.model, there, TOKENS, moved, 12), pair.continued)


def test_recomputed_kv_continues_with_the_same_tokens(pair: Pair) -> None:
    half_way = pair.continued[: LENGTH + 4]
    kv = pair.new_kv()
    paged_logits(pair.model, kv, half_way, BLOCKS, len(half_way) - 1)

    again = decode(pair.model, kv, half_way, BLOCKS, len(half_way) - 1)

    assert torch.equal(again[: len(pair.continued)], pair.continued)


def test_config_and_weights_survive_our_own_files(oracle: Oracle, tmp_path: Path) -> None:
    loaded = load_model(oracle.directory)
    save_model(tmp_path, loaded.config, loaded.weights)

    again = load_model(tmp_path)

    assert again.config == loaded.config
    assert read_hf(json.loads(json.dumps(write_hf(again.config)))).digest() == again.config.digest()
    assert again.weights.keys() == loaded.weights.keys()
    assert all(torch.equal(again.weights[n], w) for n, w in loaded.weights.items())


def test_dynamic_rope_beyond_the_trained_positions_equals_transformers_decoding(
    tmp_path: Path,
) -> None:
    # transformers stretches by the longest sequence of a call, so only its token-by-token decoding
    # has one answer; ours is the same for every way to cut a prompt.
    oracle = reference("llama, dynamic rope")
    oracle.config.max_position_embeddings = 8
    oracle = type(oracle)(oracle.config).eval()
    loaded = load_saved(oracle, tmp_path)
    model = Transformer(loaded.config, loaded.stored)
    cache, logits = None, []
    with torch.inference_mode():
        for position in range(LENGTH):
            out = oracle(TOKENS[None, position : position + 1], past_key_values=cache)
            cache = out.past_key_values
            logits.append(out.logits[0])

    ours = paged_logits(model, PagedKv(loaded.config, 8, BLOCK_SIZE), TOKENS, BLOCKS, 7, LENGTH)

    assert loaded.config.max_positions == 16
    assert_logits_near(ours, torch.cat(logits))
