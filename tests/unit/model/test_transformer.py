from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from tests.unit.model.conftest import Tiny, assert_near
from understudy.model.attention import PackedCausal
from understudy.model.ffn import FfnShards, Gates, PendingHidden, sum_partials
from understudy.model.transformer import Transformer
from understudy.model.weights import load_model

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 1000.0,
}


def _reference(kind: str) -> PreTrainedModel:
    torch.manual_seed(3)
    if kind == "mixtral":
        mixture = MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2)
        model: PreTrainedModel = MixtralForCausalLM(mixture)
    else:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=kind == "tied llama"))
    for parameter in model.parameters():
        parameter.data.normal_(0.0 if parameter.dim() > 1 else 1.0, 0.3)
    return model.eval()


@pytest.mark.parametrize("kind", ["tied llama", "untied llama", "mixtral"])
def test_logits_and_greedy_tokens_equal_transformers(kind: str, tmp_path: Path) -> None:
    reference = _reference(kind)
    reference.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    model = Transformer(loaded.config, loaded.weights)
    tokens = torch.randint(3, 97, (12,), generator=torch.Generator().manual_seed(1))

    with torch.inference_mode():
        expected = reference(tokens[None]).logits[0]
        hidden = model.forward(tokens, torch.arange(12), PackedCausal([12]))
        actual = model.logits(hidden)
        greedy = tokens
        for _ in range(16):
            positions = torch.arange(len(greedy))
            hidden = model.forward(greedy, positions, PackedCausal([len(greedy)]))
            greedy = torch.cat((greedy, model.logits(hidden[-1:]).argmax(-1)))
        generated = reference.generate(
            tokens[None],
            attention_mask=torch.ones(1, 12, dtype=torch.int64),
            max_new_tokens=16,
            min_new_tokens=16,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0]

    assert_near(actual, expected, tolerance=1e-4)
    assert torch.equal(greedy, generated)


def test_packed_sequences_do_not_see_each_other(tiny: Tiny) -> None:
    lengths = [5, 1, 9, 5]
    tokens = torch.arange(20) % 97
    positions = torch.cat([torch.arange(length) for length in lengths])
    model = Transformer(tiny.config, tiny.weights)

    packed = model.logits(model.forward(tokens, positions, PackedCausal(lengths)))

    alone = torch.cat([tiny.logits(part) for part in tokens.split(lengths)])
    assert_near(packed, alone, tolerance=1e-5)


class _TwoWorkers:
    """Each canonical shard on a worker of its own, answered in reverse order."""

    def __init__(self, tiny: Tiny) -> None:
        shards = range(tiny.config.num_ffn_shards)
        self._workers = [FfnShards(tiny.config, tiny.weights, shards=[s]) for s in shards]

    def submit(self, layer: int, hidden: torch.Tensor, gates: Gates | None) -> PendingHidden:
        answers = {
            shard: worker.partial(layer, shard, hidden.clone(), gates)
            for shard, worker in reversed(list(enumerate(self._workers)))
        }

        class Pending:
            def wait(self) -> torch.Tensor:
                return sum_partials([answers[shard] for shard in sorted(answers)])

        return Pending()


def test_disaggregated_shards_equal_fused_bit_for_bit(tiny: Tiny) -> None:
    tokens, positions = torch.arange(11), torch.arange(11)

    fused = Transformer(tiny.config, tiny.weights).forward(tokens, positions, PackedCausal([11]))
    apart = Transformer(tiny.config, tiny.weights, _TwoWorkers(tiny)).forward(
        tokens, positions, PackedCausal([11])
    )

    assert torch.equal(fused, apart)


def test_number_of_shards_only_changes_rounding(dense: Tiny) -> None:
    tokens = torch.arange(11)
    whole = Tiny(replace(dense.config, num_ffn_shards=1), dense.weights)

    assert_near(whole.logits(tokens), dense.logits(tokens), tolerance=1e-4)


def test_gradients_reach_every_weight_of_a_whole_model(tiny: Tiny) -> None:
    config = replace(tiny.config, num_ffn_shards=1)
    weights = {name: weight.clone().requires_grad_() for name, weight in tiny.weights.items()}
    model = Transformer(config, weights)
    tokens = torch.arange(40) % 97

    for _ in range(2):
        hidden = model.forward(tokens, torch.arange(40), PackedCausal([40]))
        torch.nn.functional.cross_entropy(model.logits(hidden), tokens.roll(-1)).backward()

    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in weights.values())


def test_gradients_through_padding_equal_those_of_sequences_alone(dense: Tiny) -> None:
    config = replace(dense.config, num_ffn_shards=1)
    tokens = torch.arange(10)
    gradients = []
    for groups in ([[3, 7]], [[3], [7]]):
        weight = dense.weights["model.layers.0.self_attn.k_proj.weight"].clone().requires_grad_()
        weights = {**dense.weights, "model.layers.0.self_attn.k_proj.weight": weight}
        model = Transformer(config, weights)
        start = 0
        for lengths in groups:
            rows = tokens[start : start + sum(lengths)]
            positions = torch.cat([torch.arange(length) for length in lengths])
            model.logits(
                model.forward(rows, positions, PackedCausal(lengths))
            ).square().sum().backward()
            start += sum(lengths)
        gradients.append(weight.grad)

    assert_near(gradients[0], gradients[1], tolerance=1e-3)
