"""Tiny seeded models that every test of the model library shares."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from understudy.model.adapter import Adapter, new_adapter
from understudy.model.attention import PackedCausal
from understudy.model.config import ModelConfig
from understudy.model.transformer import Transformer
from understudy.model.weights import random_weights


@dataclass(frozen=True, slots=True)
class Tiny:
    """A random model and a way to get reference logits of one sequence."""

    config: ModelConfig
    weights: Mapping[str, Tensor]

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the packed reference logits (T, V) of one sequence."""
        model = Transformer(self.config, self.weights)
        length = tokens.shape[0]
        return model.logits(model.forward(tokens, torch.arange(length), PackedCausal([length])))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Compare like `torch.testing.assert_close`, which would import half of torch.compile."""
    assert actual.shape == expected.shape
    excess = (actual - expected).abs() - tolerance * expected.abs()
    assert (excess <= tolerance).all(), f"off by {excess.max().item():.3g} beyond the relative part"


def assert_logits_near(actual: Tensor, expected: Tensor) -> None:
    """Hold logits to 1e-4, whatever their size."""
    assert actual.shape == expected.shape
    worst = (actual - expected).abs().max().item()
    assert worst <= 1e-4, f"off by {worst:.3g}"


DENSE = ModelConfig(
    family="llama",
    vocab_size=97,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_size=64,
    max_positions=128,
    bos_id=1,
    eos_ids=(2,),
)
FACTORISED = replace(DENSE, embedding_size=12)
MIXTURE = replace(DENSE, family="mixtral", num_experts=4, num_experts_per_token=2)


@pytest.fixture
def dense_config() -> ModelConfig:
    return DENSE


@pytest.fixture
def mixture_config() -> ModelConfig:
    return MIXTURE


@pytest.fixture(params=[DENSE, FACTORISED, MIXTURE], ids=["dense", "factorised", "mixture"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return Tiny(request.param, random_weights(request.param, seed=7, deviation=0.3))


@pytest.fixture
def dense() -> Tiny:
    return Tiny(DENSE, random_weights(DENSE, seed=7, deviation=0.3))


@pytest.fixture
def mixture() -> Tiny:
    return Tiny(MIXTURE, random_weights(MIXTURE, seed=7, deviation=0.3))


def trained_adapter(config: ModelConfig) -> Adapter:
    """An adapter that changes something: the halves that start at zero are random."""
    fresh = new_adapter(config, name="a", rank=3, alpha=6, base_digest="b", seed=1)
    generator = torch.Generator().manual_seed(2)
    tensors = {
        key: value if key.endswith("down") else torch.randn(value.shape, generator=generator)
        for key, value in fresh.tensors.items()
    }
    return replace(fresh, tensors=tensors)
