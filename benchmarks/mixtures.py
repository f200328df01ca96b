"""Mixtures and latents: `python -m benchmarks.mixtures [--quick] [--json FILE] [--threads N]`.

Seeded models of middle size, a Qwen3-MoE and a DeepSeek-V3, with matrices of int4 in groups of 32.
Contestants: ours in both arithmetics; the same packed weights with torch's attention and experts
computed one by one, which is what ran before there were operators for them; and transformers in
float32. They take turns in one process.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.utils import logging

from benchmarks.measure import (
    Figure,
    bounds,
    figure,
    header,
    interleaved,
    machine,
    table,
    write_json,
)
from understudy.model.decoder import Decoder, make_decoder
from understudy.model.ffn import (
    Gates,
    PendingHidden,
    dense_weights,
    expert_partial,
    expert_weights,
    ffn_shard,
)
from understudy.model.paged import PagedKv, PagedSequence
from understudy.model.transformer import Transformer
from understudy.model.weights import LoadedModel, load_model
from understudy_kernels import load

BLOCK_SIZE: Final = 16
CONTEXT: Final = 512
SHAPE: Final[Mapping[str, object]] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
MODELS: Final[Mapping[str, Mapping[str, object]]] = {
    "qwen3_moe": {
        "head_dim": 64,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
    },
    "deepseek_v3": {
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "kv_lora_rank": 256,
        "q_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "n_routed_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 512,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
    },
}
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Step:
    """New tokens of some sequences after what is cached of each."""

    num_sequences: int
    num_cached: int
    num_new: int

    @property
    def name(self) -> str:
        """What the step is called in the table."""
        if self.num_cached == 0:
            return f"prompt of {self.num_new} tokens"
        return f"decode of {self.num_sequences}, {self.num_cached} cached"


STEPS: Final = (Step(1, CONTEXT, 1), Step(8, CONTEXT, 1), Step(1, 0, CONTEXT))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write the figures where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads (default: its own)")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    num_rounds = 3 if given.quick else 9
    where, limits = machine(load().isa), bounds(num_rounds)
    print(header(where, limits) + "\n")
    figures = [each for family in MODELS for each in measure(family, num_rounds)]
    print(table(figures))
    if given.json:
        write_json(given.json, where, limits, figures)


def measure(family: str, num_rounds: int) -> list[Figure]:
    """Measure every step of one model; each arithmetic is compared with all that is not ours."""
    torch.manual_seed(0)
    shape = AutoConfig.for_model(family, **{**SHAPE, **MODELS[family]})
    peer: PreTrainedModel = AutoModelForCausalLM.from_config(shape).eval()
    with tempfile.TemporaryDirectory() as directory:
        logging.disable_progress_bar()
        peer.save_pretrained(directory)
        exact, fast = (load_model(Path(directory), "int4", mode) for mode in ("exact", "fast"))
    decoders: dict[str, Decoder] = {
        "exact": make_decoder(exact.config, exact.stored, None, "exact"),
        "fast": make_decoder(fast.config, fast.stored, None, "fast"),
        "torch attention, experts one by one": Transformer(
            exact.config, exact.stored, _OneByOne(exact)
        ),
    }
    figures = []
    for step in STEPS:
        contestants = {name: _ours(decoder, step) for name, decoder in decoders.items()}
        timings = interleaved(
            {**contestants, "transformers float32": _theirs(peer, step)}, num_rounds, num_warm=1
        )
        for ours, other in (("exact", "fast"), ("fast", "exact")):
            shown = {name: timing for name, timing in timings.items() if name != other}
            figures.append(figure(f"{family}, {step.name}, {ours}", shown, ours))
    return figures


class _OneByOne:
    """Local experts, each computed by itself."""

    def __init__(self, loaded: LoadedModel) -> None:
        config, weights = loaded.config, loaded.stored
        self._dense = {
            layer: dense_weights(weights, layer)
            for layer in range(config.num_layers)
            if not config.is_mixture(layer)
        }
        self._experts = {
            layer: {id_: expert_weights(weights, layer, id_) for id_ in range(config.num_experts)}
            for layer in range(config.num_layers)
            if config.is_mixture(layer)
        }

    def submit(self, layer: int, hidden: Tensor, gates: Gates | None) -> PendingHidden:
        """Compute at once."""
        if gates is None:
            return _Done(ffn_shard(self._dense[layer], hidden))
        return _Done(expert_partial(self._experts[layer], hidden, gates))


@dataclass(frozen=True, slots=True)
class _Done:
    value: Tensor

    def wait(self) -> Tensor:
        return self.value


def _tokens(step: Step, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(step.num_sequences)
    return torch.randint(3, 8192, (step.num_sequences, count), generator=generator)


def _ours(decoder: Decoder, step: Step) -> Call:
    num_each = -(-(step.num_cached + step.num_new) // BLOCK_SIZE)
    kv = PagedKv(decoder.config, step.num_sequences * num_each, BLOCK_SIZE)
    tables = [
        range(index * num_each, (index + 1) * num_each) for index in range(step.num_sequences)
    ]

    def advance(cached: int, new: int) -> Tensor:
        sequences = [PagedSequence(list(table), cached, new) for table in tables]
        with torch.inference_mode():
            hidden = decoder.advance(_tokens(step, new).flatten(), kv, sequences)
            return decoder.logits(hidden[new - 1 :: new]).argmax(dim=-1)

    if step.num_cached:
        advance(0, step.num_cached)
    return lambda: advance(step.num_cached, step.num_new)


def _theirs(model: PreTrainedModel, step: Step) -> Call:
    def advance(new: int, cache: DynamicCache) -> Tensor:
        with torch.inference_mode():
            done = model(
                _tokens(step, new), past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            chosen: Tensor = done.logits[:, -1].argmax(dim=-1)
            return chosen

    if not step.num_cached:
        return lambda: advance(step.num_new, DynamicCache())
    filled = DynamicCache()
    advance(step.num_cached, filled)

    def again() -> Tensor:
        chosen = advance(step.num_new, filled)
        filled.crop(-step.num_new)
        return chosen

    return again


if __name__ == "__main__":
    main()
