"""The student is the teacher's layers, busiest units and leading embedding directions."""

import torch

from services.distiller.batches import Batches
from services.distiller.student import (
    EMBEDDING,
    StudentShape,
    cut_student,
    principal_directions,
    student_config,
    trainable,
)
from tests.unit.distiller.parts import CONFIG, VOCAB, examples, weights
from understudy.model.attention import PackedCausal
from understudy.model.transformer import Transformer
from understudy.model.weights import check_weights

COUNTS = torch.ones(VOCAB)


def sample() -> list:  # type: ignore[type-arg]
    batches = Batches(examples(), 8, 1)
    return [batches.of_step(0)]


def test_a_cut_that_removes_nothing_is_the_teacher() -> None:
    shape = StudentShape(layers=(0, 1, 2), ffn_size=48, embedding_size=32)
    teacher = weights()
    student = cut_student(CONFIG, teacher, shape, sample(), COUNTS)
    tokens, context = torch.arange(10), PackedCausal([10])
    whole = Transformer(CONFIG, teacher)
    cut = Transformer(student_config(CONFIG, shape), student)
    expected = whole.logits(whole.forward(tokens, tokens, context))
    actual = cut.logits(cut.forward(tokens, tokens, context))
    assert torch.allclose(actual, expected, atol=1e-3)


def test_the_student_has_the_weights_its_config_asks_for() -> None:
    shape = StudentShape(layers=(0, 2), ffn_size=16, embedding_size=8)
    student = cut_student(CONFIG, weights(), shape, sample(), COUNTS)
    config = student_config(CONFIG, shape)
    check_weights(config, student, "student")
    assert config.num_layers == 2
    norm = "input_layernorm.weight"
    assert torch.equal(student[f"model.layers.1.{norm}"], weights()[f"model.layers.2.{norm}"])


def test_the_busiest_units_are_kept() -> None:
    teacher = weights()
    teacher["model.layers.0.mlp.down_proj.weight"][:, 5] *= 100.0
    shape = StudentShape(layers=(0,), ffn_size=1, embedding_size=8)
    student = cut_student(CONFIG, teacher, shape, sample(), COUNTS)
    kept = student["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(kept, teacher["model.layers.0.mlp.up_proj.weight"][5:6])


def test_directions_are_orthonormal_and_keep_what_lies_in_a_plane() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(50, 2, generator=generator) @ torch.randn(2, 12, generator=generator)
    basis = principal_directions(embedding, torch.zeros(50), 2)
    assert torch.allclose(basis.T @ basis, torch.eye(2), atol=1e-5)
    assert torch.allclose(embedding @ basis @ basis.T, embedding, atol=1e-4)


def test_frequent_tokens_choose_the_direction() -> None:
    embedding = torch.eye(4)
    basis = principal_directions(embedding, torch.tensor([0.0, 9.0, 0.0, 0.0]), 1)
    assert basis.abs().flatten().argmax().item() == 1


def test_the_embedding_table_is_frozen() -> None:
    names = set(trainable(weights()))
    assert EMBEDDING not in names
    assert len(names) == len(weights()) - 1
