"""What a request is answered with depends on nothing but the request: 64 of them, mixed at will."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import pytest
from prometheus_client import CollectorRegistry

from services.attention.core import EngineCore
from services.attention.metrics import EngineMetrics
from services.attention.runner import ModelRunner
from services.attention.sequence import DecodingParams, Priority, Submission
from tests.unit.attention.parts import ROOT, make_core, make_scheduler, submission
from tests.unit.model.configs import ALL
from tests.unit.model.conftest import trained_adapter
from tests.unit.model.gguf_files import encode_any, named_tensors, write_gguf
from understudy.model.config import ModelConfig
from understudy.model.decoder import Compute, make_decoder, prepare_adapter
from understudy.model.kv_planes import DTYPES
from understudy.model.paged import PagedKv
from understudy.model.safetensors_io import save_model
from understudy.model.weights import LoadedModel, load_model, random_weights

NUM_REQUESTS = 64
BLOCK_SIZE = 4
NUM_BLOCKS = 88
"""Fewer than all requests at once would need, so that some are preempted and recomputed."""
Answer = tuple[int, float]
"""A token and its log-probability, of which every bit counts."""
KINDS = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0"}
"""What safetensors are kept in, as the kernels call it; anything else is a kind of GGUF."""


@dataclass(frozen=True)
class Case:
    """A model, what its matrices lie in, what its keys and values do, and the arithmetic."""

    name: str
    kept_as: str
    kv_dtype: str
    compute: Compute

    def __str__(self) -> str:
        return "-".join((self.name, self.kept_as, self.kv_dtype, self.compute))


# Floats are computed with in one way: `fast` is only another arithmetic over quantised weights.
CASES = [
    Case("llama", "float32", "float32", "exact"),
    Case("llama", "bfloat16", "float32", "exact"),
    Case("llama", "int8", "int8", "exact"),
    Case("llama", "int8", "float16", "fast"),
    Case("llama", "Q4_1", "float32", "exact"),
    Case("llama", "Q4_1", "float16", "fast"),
    Case("llama", "Q4_K", "float32", "exact"),
    Case("llama", "Q4_K", "int8", "fast"),
    Case("qwen2_moe", "bfloat16", "bfloat16", "exact"),
    Case("qwen3_moe", "int8", "float32", "fast"),
    Case("mixtral", "int8", "int8", "exact"),
    Case("deepseek_v3", "float32", "float32", "exact"),
    Case("deepseek_v3", "bfloat16", "int8", "exact"),
    Case("longcat_flash", "bfloat16", "bfloat16", "exact"),
]


def shaped(name: str, kept_as: str) -> ModelConfig:
    """A config whose every matrix is made of whole blocks, in each shard of its feed-forward."""
    if ALL[name].latent is not None:
        return ALL[name]  # floats have no blocks to fill
    width = 256 if kept_as.endswith("_K") else 64
    config = replace(ALL[name], hidden_size=width, head_dim=width // 4, ffn_size=2 * width)
    if config.is_moe:
        config = replace(config, num_experts=4, num_experts_per_token=2)
    return replace(config, num_layers=2)


def load_case(case: Case, directory: Path) -> LoadedModel:
    """Write the model's file and load it; every matrix lies in what the case says."""
    config = shaped(case.name, case.kept_as)
    weights = random_weights(config, seed=7, deviation=2.0 * config.hidden_size**-0.5)
    if case.kept_as in KINDS:
        save_model(directory, config, weights)
        loaded = load_model(directory, case.kept_as, case.compute)
    else:
        kind, file = gguf.GGMLQuantizationType[case.kept_as], directory / "m.gguf"
        write_gguf(file, config, named_tensors(config, weights), kind, encode_any)
        loaded = load_model(file, compute=case.compute)
    formats = {part.format for name, part in loaded.packed.items() if ".mlp.gate." not in name}
    assert formats == {KINDS.get(case.kept_as, case.kept_as)}
    return loaded


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


@dataclass
class Engine:
    """An engine over a model, and what it counted."""

    core: EngineCore
    registry: CollectorRegistry

    @classmethod
    def of(cls, loaded: LoadedModel, kv_dtype: str, token_budget: int) -> "Engine":
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
        registry = CollectorRegistry()
        metrics = EngineMetrics(registry)
        core = make_core(runner, scheduler, max_context=128, metrics=metrics)
        return cls(core, registry)

    @property
    def num_preemptions(self) -> float:
        """How many sequences lost their blocks and were computed again."""
        name = "understudy_attention_preemptions_total"
        return self.registry.get_sample_value(name, {"how": "recompute"}) or 0.0

    def answers(self, waves: Sequence[Sequence[Submission]]) -> Mapping[int, list[Answer]]:
        """Submit a wave, compute a few steps, submit the next; return what each request gets."""
        core, tokens = self.core, dict[int, list[Answer]]()

        def take() -> None:
            for output in core.take_outputs().values():
                assert not output.failed
                for run in output.tokens:
                    named = zip(run.token_ids, run.logprobs, strict=True)
                    tokens.setdefault(run.sequence_id, []).extend(named)

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
@pytest.mark.parametrize("case", CASES, ids=str)
def test_64_mixed_requests_get_the_same_tokens_in_whatever_company(
    case: Case, tmp_path: Path
) -> None:
    loaded, wanted = load_case(case, tmp_path), requests()
    alone: dict[int, list[Answer]] = {}
    for one in wanted:
        alone |= Engine.of(loaded, case.kv_dtype, token_budget=64).answers([[one]])
    assert {key: len(tokens) for key, tokens in alone.items()} == {
        one.key.sequence_id: one.params.max_tokens for one in wanted
    }
    # Tokens that were the same whatever was computed would prove nothing.
    assert len({token for tokens in alone.values() for token, _ in tokens}) > 20

    num_preemptions = 0.0
    for seed, token_budget in ((1, 32), (2, 7), (3, 256)):
        engine = Engine.of(loaded, case.kv_dtype, token_budget)
        assert engine.answers(list(shuffled(wanted, seed))) == alone
        num_preemptions += engine.num_preemptions
    assert num_preemptions > 8
