"""The gate of a mixture: scores to chosen experts and weights, by the rule of the family."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from understudy.model.ffn import Gates
from understudy.model.traits import GateRule

# As in DeepSeek-V3's own code; it only matters where every chosen score has underflown.
LEAST_SUM = 1e-20
WHOLE_LANES: Final = 64
ROWS_OF_A_THREAD: Final = 64


def choose_experts(
    rule: GateRule,
    num_chosen: int,
    logits: Tensor,  # (T, E)
    bias: Tensor | None = None,  # (E,)
) -> Gates:
    """Return the `num_chosen` best experts of each token and their weights.

    Rules: Mixtral (arXiv 2401.04088), DeepSeek-V2 (arXiv 2405.04434, section 2.2.2), DeepSeek-V3
    (arXiv 2412.19437, section 2.1.2), LongCat-Flash (arXiv 2509.01322, section 2.1).
    """
    if rule.scoring == "softmax":
        scores = logits.softmax(dim=-1, dtype=torch.float32)
    else:
        scores = sigmoid(logits.float())
    ranked = scores if bias is None else scores + bias
    if rule.num_groups > 1:
        ranked = _within_best_groups(rule, ranked)
    if ranked is scores:
        weights, ids = scores.topk(num_chosen, dim=-1)
    else:
        ids = ranked.topk(num_chosen, dim=-1).indices
        weights = scores.gather(1, ids)
    if rule.is_normalised:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + LEAST_SUM)
    return Gates(ids, weights if rule.scale == 1.0 else weights * rule.scale)


def sigmoid(logits: Tensor) -> Tensor:
    """Return the sigmoid of (T, N), each row to the same bits however many rows there are.

    Torch computes what does not fill its vector registers with another exponential, and cuts large
    tensors between threads anywhere.
    """
    width = logits.shape[1]
    padded = functional.pad(logits, (0, -width % WHOLE_LANES))
    return torch.cat([rows.sigmoid() for rows in padded.split(ROWS_OF_A_THREAD)])[:, :width]


def _within_best_groups(rule: GateRule, ranked: Tensor) -> Tensor:
    size = ranked.shape[1] // rule.num_groups
    grouped = ranked.view(ranked.shape[0], rule.num_groups, size)
    num_best = 1 if rule.group_score == "max" else 2
    merit = grouped.topk(num_best, dim=-1).values.sum(dim=-1)
    best = merit.topk(rule.num_top_groups, dim=-1).indices
    is_out = torch.ones_like(merit, dtype=torch.bool).scatter(1, best, value=False)
    return grouped.masked_fill(is_out.unsqueeze(-1), -torch.inf).flatten(1)
