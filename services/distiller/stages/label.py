"""Stage 2: the teacher's log probabilities at every free position of some train rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from services.distiller.batches import collate
from services.distiller.examples import Example, Examples
from services.distiller.losses import UNUSED
from services.distiller.scoring import Scorer
from services.distiller.stages.adapter import trained_adapter
from services.distiller.stages.data import train_examples
from services.distiller.teaching import Teaching, TopTokens
from services.distiller.workshop import Workshop
from understudy.errors import FailedPrecondition
from understudy.model.transformer import Transformer

NUM_ROWS = 4096
NUM_TOP = 8
PART_SIZE = 512
_BATCH_SIZE = 32


def label_rows(workshop: Workshop) -> None:
    """Label rows in parts of 512; finished parts are kept across interruptions."""
    examples = labelled_examples(workshop)
    folder = workshop.directory / "labels"
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(examples), PART_SIZE)
    if all(_part(folder, start).exists() for start in starts):
        return
    teacher = Transformer(workshop.teacher_config, workshop.teacher.weights)
    scorer = Scorer(teacher, workshop.teacher.weights, trained_adapter(workshop))
    with workshop.display.task("labels", len(examples)) as report:
        for start in starts:
            stop = min(start + PART_SIZE, len(examples))
            if not _part(folder, start).exists():
                part = [examples[index] for index in range(start, stop)]
                Teaching.pack(_labelled(scorer, part)).save(_part(folder, start))
            report(stop, None)


def labelled_examples(workshop: Workshop) -> Examples:
    """Return the examples that get labels: the first train rows, which is a random choice."""
    return train_examples(workshop).first(NUM_ROWS)


def teaching(workshop: Workshop) -> Teaching:
    """Return the labels of the labelled examples, in their order.

    Raises FailedPrecondition while some are missing.
    """
    parts = [Teaching.load(path) for path in sorted((workshop.directory / "labels").glob("*.npz"))]
    labels = [part[index] for part in parts for index in range(len(part))]
    num_rows = len(labelled_examples(workshop))
    if len(labels) != num_rows:
        raise FailedPrecondition(
            f"{len(labels)} of {num_rows} rows are labelled; run --stage label first."
        )
    return Teaching.pack(labels)


@torch.inference_mode()
def _labelled(scorer: Scorer, examples: list[Example]) -> list[TopTokens]:
    order = sorted(range(len(examples)), key=lambda index: len(examples[index]))
    labels: dict[int, TopTokens] = {}
    for start in range(0, len(order), _BATCH_SIZE):
        chosen = order[start : start + _BATCH_SIZE]
        batch = collate([examples[index] for index in chosen])
        logits = scorer.logits(batch).masked_fill(~batch.allowed, float("-inf"))
        top = logits.log_softmax(dim=1).topk(min(NUM_TOP, logits.shape[1]), dim=1)
        ids = batch.vocabulary[top.indices].masked_fill(top.values.isinf(), UNUSED)
        logprobs = top.values.masked_fill(top.values.isinf(), 0.0)
        row = 0
        for index in chosen:
            span = slice(row, row + len(examples[index].free))
            labels[index] = TopTokens(
                ids[span].numpy().astype(np.int32), logprobs[span].numpy().astype(np.float16)
            )
            row = span.stop
    return [labels[index] for index in range(len(examples))]


def _part(folder: Path, start: int) -> Path:
    return folder / f"part-{start:06d}.npz"
