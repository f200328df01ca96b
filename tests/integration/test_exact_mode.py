"""What a request is answered with depends on nothing but the request: 64 of them, mixed at will."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from services.attention.core import EngineCore
from services.attention.runner import ModelRunner
from services.attention.sequence import DecodingParams, Priority, Submission
from tests.unit.attention.parts import ROOT, make_core, make_scheduler, submission
from tests.unit.model.configs import ALL
from tests.unit.model.conftest import trained_adapter
from understudy.model.decoder import Compute, make_decoder, prepare_adapter
from understudy.model.kv_planes import DTYPES
from understudy.model.paged import PagedKv
from understudy.model.safetensors_io import save_model
from understudy.model.weights import LoadedModel, load_model, random_weights

NUM_REQUESTS = 64
BLOCK_SIZE = 4
NUM_BLOCKS = 160
"""Fewer than all requests at once would need, so that some are preempted and recomputed."""


def requests() -> list[Submission]:
    """Long and short prompts, shared and own prefixes, greedy and sampled, every priority."""
    rng = random.Random(11)
    prefixes = [[rng.randrange(3, 97) for _ in range(24)] for _ in range(4)]
    made = []
    for index in range(NUM_REQUESTS):
        prefix = prefixes[index % 4] if index % 3 else []
        tokens = prefix + [rng.randrange(3, 97) for _ in range(rng.choice((1, 2, 7, 19, 40)))]
        params = DecodingParams(
            max_tokens=rng.choice((1, 5, 12, 20)),
            temperature=rng.choice((0.0, 0.0, 0.7, 1.2)),
            top_k=rng.choice((0, 8)),
            top_p=rng.choice((1.0, 0.9)),
            seed=index,
            ignore_eos=True,
        )
        one = submission(
            index,
            tokens,
            kv_root=ROOT if index % 5 else b"",
            adapter="a" if index % 4 == 1 else "",
            priority=Priority(index % 3),
            tenant=f"tenant-{index % 3}",
        )
        made.append(replace(one, params=params))
    return made


def engine(loaded: LoadedModel, kv_dtype: str, token_budget: int) -> EngineCore:
    decoder = make_decoder(loaded.config, loaded.stored, None, loaded.compute)
    kv = PagedKv(loaded.config, NUM_BLOCKS, BLOCK_SIZE, DTYPES[kv_dtype])
    adapters = {"a": prepare_adapter(trained_adapter(loaded.config), loaded.compute)}
    scheduler = make_scheduler(
        NUM_BLOCKS,
        BLOCK_SIZE,
        token_budget=token_budget,
        max_sequences=24,
        max_waiting=2 * NUM_REQUESTS,
    )
    runner = ModelRunner(decoder, kv, adapters, loaded.config.vocab_size)
    return make_core(runner, scheduler, max_context=128)


def answers(core: EngineCore, waves: Sequence[Sequence[Submission]]) -> Mapping[int, list[int]]:
    """Submit a wave, compute a few steps, submit the next; return the tokens of each request."""
    tokens: dict[int, list[int]] = {}

    def take() -> None:
        for output in core.take_outputs().values():
            assert not output.failed
            for run in output.tokens:
                tokens.setdefault(run.sequence_id, []).extend(run.token_ids)

    for wave in waves:
        for one in wave:
            core.submit(one)
        for _ in range(3):
            core.step()
        take()
    while core.step():
        take()
    take()
    core.check_integrity()
    return tokens


def shuffled(wanted: Sequence[Submission], seed: int) -> Iterator[list[Submission]]:
    """Yield all requests in some order, a few at a time."""
    rng, left = random.Random(seed), list(wanted)
    rng.shuffle(left)
    while left:
        count = rng.choice((1, 3, 9, 20))
        yield left[:count]
        left = left[count:]


@pytest.mark.slow
@pytest.mark.parametrize("compute", ["exact", "fast"])
@pytest.mark.parametrize(
    ("name", "kv_dtype"),
    [
        ("llama", "float32"),
        ("llama", "int8"),
        ("qwen3_moe", "bfloat16"),
        ("qwen2_moe", "float32"),
        ("mixtral", "int8"),
        ("deepseek_v3", "float32"),
        ("deepseek_v3", "int8"),
        ("longcat_flash", "bfloat16"),
    ],
)
def test_64_mixed_requests_get_the_same_tokens_in_whatever_company(
    name: str, kv_dtype: str, compute: Compute, tmp_path: Path
) -> None:
    config = ALL[name]
    save_model(tmp_path, config, random_weights(config, seed=7, deviation=0.3))
    loaded = load_model(tmp_path, compute=compute)
    wanted = requests()
    alone: dict[int, list[int]] = {}
    for one in wanted:
        alone |= answers(engine(loaded, kv_dtype, token_budget=64), [[one]])
    assert {key: len(tokens) for key, tokens in alone.items()} == {
        one.key.sequence_id: one.params.max_tokens for one in wanted
    }

    for seed, token_budget in ((1, 32), (2, 7), (3, 256)):
        core = engine(loaded, kv_dtype, token_budget)
        assert answers(core, list(shuffled(wanted, seed))) == alone
