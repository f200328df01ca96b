"""A tiny teacher, its tokens and its batches, all from seeds."""

import numpy as np
import torch
from torch import Tensor

from services.distiller.examples import Example, Examples
from understudy.model.config import ModelConfig
from understudy.model.weights import random_weights

VOCAB = 64

CONFIG = ModelConfig(
    family="llama",
    vocab_size=VOCAB,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_size=48,
    eos_ids=(2,),
    num_ffn_shards=1,
)


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights strong enough that layers matter."""
    return random_weights(CONFIG, seed, deviation=0.2)


def examples(num: int = 24, seed: int = 0) -> Examples:
    """Examples of different lengths with two to five free positions."""
    generator = np.random.default_rng(seed)
    return Examples.pack([_example(generator) for _ in range(num)])


def _example(generator: np.random.Generator) -> Example:
    prompt_length = int(generator.integers(3, 9))
    num_answer = int(generator.integers(5, 9))
    tokens = generator.integers(3, VOCAB, prompt_length + num_answer).astype(np.int32)
    free = np.sort(generator.choice(num_answer, int(generator.integers(2, 5)), replace=False))
    positions = (free + prompt_length).astype(np.int32)
    candidates = tuple(_candidates(generator, int(tokens[position])) for position in positions)
    return Example(tokens, prompt_length, positions, candidates)


def _candidates(generator: np.random.Generator, target: int) -> np.ndarray:
    others = generator.integers(3, VOCAB, int(generator.integers(1, 6)))
    return np.unique([target, (target + 1) % VOCAB, *others]).astype(np.int32)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    """All values of a set of tensors in one vector."""
    return torch.cat([tensors[name].detach().flatten() for name in sorted(tensors)])
