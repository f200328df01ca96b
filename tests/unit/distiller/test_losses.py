"""Losses against values worked out by hand."""

import math

import pytest
import torch

from services.distiller import losses

# Probabilities 1/2, 1/4, 1/8, 1/8.
LOGITS = torch.tensor([[3.0, 2.0, 1.0, 1.0]]) * math.log(2.0)
ALL = torch.ones(1, 4, dtype=torch.bool)
FIRST_TWO = torch.tensor([[True, True, False, False]])


def test_sft_is_minus_log_of_the_targets_share() -> None:
    loss = losses.sft(LOGITS, torch.tensor([1]), ALL)
    assert loss.item() == pytest.approx(math.log(4.0), rel=1e-6)


def test_sft_counts_only_allowed_columns() -> None:
    # Among the first two, the second has 1/3.
    loss = losses.sft(LOGITS, torch.tensor([1]), FIRST_TWO)
    assert loss.item() == pytest.approx(math.log(3.0), rel=1e-6)


def test_the_open_share_mixes_in_all_columns() -> None:
    loss = losses.sft(LOGITS, torch.tensor([1]), FIRST_TWO, open_share=0.25)
    assert loss.item() == pytest.approx(0.75 * math.log(3.0) + 0.25 * math.log(4.0), rel=1e-6)


def test_kl_over_all_columns_is_the_exact_one() -> None:
    teacher = torch.tensor([[0.25, 0.25, 0.25, 0.25]])
    loss = losses.forward_kl(LOGITS, ALL, torch.tensor([[0, 1, 2, 3]]), teacher.log())
    # 1/4 (log 1/2 + log 1 + log 2 + log 2) = 1/4 log 2.
    assert loss.item() == pytest.approx(0.25 * math.log(2.0), rel=1e-5)


def test_kl_compares_what_is_not_listed_as_one_bucket() -> None:
    teacher = torch.tensor([[0.5, 0.3]])
    loss = losses.forward_kl(LOGITS, ALL, torch.tensor([[0, 1]]), teacher.log())
    # Head: 0.5 log(0.5/0.5) + 0.3 log(0.3/0.25); tail: 0.2 log(0.2/0.25).
    expected = 0.3 * math.log(1.2) + 0.2 * math.log(0.8)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_unused_places_change_nothing() -> None:
    teacher = torch.tensor([[0.5, 0.3]]).log()
    short = losses.forward_kl(LOGITS, ALL, torch.tensor([[0, 1]]), teacher)
    padded = losses.forward_kl(
        LOGITS,
        ALL,
        torch.tensor([[0, 1, losses.UNUSED]]),
        torch.cat([teacher, torch.zeros(1, 1)], dim=1),
    )
    assert padded.item() == pytest.approx(short.item())


def test_kl_is_zero_where_student_and_teacher_agree_and_so_is_its_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    teacher = torch.tensor([[2 / 3, 1 / 3]]).log()
    loss = losses.forward_kl(logits, FIRST_TWO, torch.tensor([[0, 1]]), teacher)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.abs().max().item() < 1e-6
    assert logits.grad.isfinite().all()
