"""Distillation losses as pure functions over candidate logits.

At every free position the grammar leaves a set of candidate tokens. Serving decodes among them,
so training scores among them: the columns are the union of the batch's candidate sets, and each
row's mask says which of them its own grammar allows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

UNUSED = -1


def sft(
    logits: Tensor,  # (N, C)
    targets: Tensor,  # (N,) columns
    allowed: Tensor,  # (N, C) bool
    open_share: float = 0.0,
) -> Tensor:
    """Return the mean cross entropy among allowed columns.

    `open_share` of the loss is taken over all columns instead, so that the probability mass which
    a grammar removes at serving time stays a meaningful signal.
    """
    masked = functional.cross_entropy(logits.masked_fill(~allowed, float("-inf")), targets)
    if not open_share:
        return masked
    return (1.0 - open_share) * masked + open_share * functional.cross_entropy(logits, targets)


def forward_kl(
    logits: Tensor,  # (N, C) of the student
    allowed: Tensor,  # (N, C) bool
    columns: Tensor,  # (N, K) columns of the teacher's top tokens, UNUSED where it has fewer
    logprobs: Tensor,  # (N, K) of the teacher, among the allowed columns
) -> Tensor:
    """Return the mean KL(teacher || student) over a sparse teacher with a tail bucket.

    The teacher's top K tokens are compared one by one and everything else as one bucket, so the
    loss is exact where the teacher's mass is and finite elsewhere (DistillSpec, arXiv 2310.08461).
    """
    is_used = columns != UNUSED
    student_all = functional.log_softmax(logits.masked_fill(~allowed, float("-inf")), dim=1)
    student = torch.gather(student_all, 1, columns.clamp_min(0)).masked_fill(~is_used, 0.0)
    known = logprobs.masked_fill(~is_used, 0.0)
    teacher = known.exp().masked_fill(~is_used, 0.0)
    head = (teacher * (known - student)).sum(1)
    student_head = student.exp().masked_fill(~is_used, 0.0).sum(1)
    return (head + _tail(1.0 - teacher.sum(1), 1.0 - student_head)).mean()


def _tail(teacher: Tensor, student: Tensor) -> Tensor:
    """The share of the bucket that holds every token outside the teacher's top K."""
    smallest = 1e-6
    ratio = teacher.clamp_min(smallest).log() - student.clamp_min(smallest).log()
    return (teacher * ratio).masked_fill(teacher <= smallest, 0.0)
