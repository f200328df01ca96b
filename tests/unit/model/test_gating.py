"""Gates against choices worked out by hand."""

import math

import pytest
import torch

from tests.unit.model.conftest import assert_near
from understudy.model.ffn import Gates
from understudy.model.gating import choose_experts
from understudy.model.traits import GateRule

LOGITS = torch.tensor([[0.8, 0.1, 0.7, 0.6]]).log()
"""Softmax gives each number over their sum, 2.2."""


def _weights(gates: Gates) -> dict[int, float]:
    return dict(zip(gates.ids[0].tolist(), gates.weights[0].tolist(), strict=True))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (GateRule(), {0: 0.8 / 1.5, 2: 0.7 / 1.5}),
        (GateRule(is_normalised=False), {0: 0.8 / 2.2, 2: 0.7 / 2.2}),
        (GateRule(is_normalised=False, scale=2.5), {0: 2.0 / 2.2, 2: 1.75 / 2.2}),
        # Groups {0, 1} and {2, 3}: the best expert is in the first, the best two in the second.
        (
            GateRule(num_groups=2, num_top_groups=1, is_normalised=False),
            {0: 0.8 / 2.2, 1: 0.1 / 2.2},
        ),
        (GateRule(num_groups=2, num_top_groups=1, group_score="top2"), {2: 7 / 13, 3: 6 / 13}),
    ],
)
def test_softmax_choices_and_weights(rule: GateRule, expected: dict[int, float]) -> None:
    assert _weights(choose_experts(rule, 2, LOGITS)) == pytest.approx(expected)


def test_bias_moves_the_choice_but_not_the_weight() -> None:
    rule = GateRule(scoring="sigmoid", has_bias=True, is_normalised=False)
    logits = torch.tensor([[math.log(3.0), 0.0, -math.log(3.0)]])

    chosen = choose_experts(rule, 1, logits, torch.tensor([0.0, 0.0, 0.6]))

    assert _weights(chosen) == pytest.approx({2: 0.25})


def test_experts_outside_the_best_groups_are_out_even_with_negative_bias() -> None:
    rule = GateRule(
        scoring="sigmoid", has_bias=True, num_groups=2, num_top_groups=1, group_score="top2"
    )
    bias = torch.tensor([-3.0, -3.0, -2.0, -2.0])

    assert set(_weights(choose_experts(rule, 2, LOGITS, bias))) == {2, 3}


def test_scores_that_all_underflow_still_give_finite_weights() -> None:
    rule = GateRule(scoring="sigmoid")

    assert choose_experts(rule, 2, torch.full((1, 4), -200.0)).weights.isfinite().all()


def test_no_tokens_choose_no_experts() -> None:
    rule = GateRule(num_groups=2, num_top_groups=1)

    assert choose_experts(rule, 2, torch.zeros(0, 4)).ids.shape == (0, 2)


def test_gates_of_a_batch_are_those_of_its_rows() -> None:
    logits = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    rule = GateRule(num_groups=4, num_top_groups=2)

    together = choose_experts(rule, 3, logits)

    alone = [choose_experts(rule, 3, row[None]) for row in logits]
    assert torch.equal(together.ids, torch.cat([gates.ids for gates in alone]))
    assert_near(together.weights, torch.cat([gates.weights for gates in alone]))
