"""Stage 3: the student. First supervised on gold and exchanged rows, then on the teacher's labels.

Exchanged values teach copying, so they are in both parts. In the distilled part every fourth batch
carries the teacher's distribution, softer than doubtful gold.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from services.distiller import losses
from services.distiller.batches import Batch, Batches, Interleaved
from services.distiller.examples import Examples
from services.distiller.scoring import Scorer
from services.distiller.stages.data import augmented_examples, train_examples
from services.distiller.stages.label import labelled_examples, teaching
from services.distiller.student import (
    StudentShape,
    Weights,
    cut_student,
    student_config,
    trainable,
)
from services.distiller.trainer import Loss, Source, Trainer, TrainingParams
from services.distiller.workshop import Workshop
from understudy.model.config import ModelConfig
from understudy.model.safetensors_io import read_file, save_model, write_file
from understudy.model.transformer import Transformer

NAME = "understudy-slm-snips"
FOLDER = "slm-snips"
SHAPE = StudentShape(layers=(0, 1, 8, 18, 29), ffn_size=512, embedding_size=128)
OPEN_SHARE = 0.1
DISTILLED_SHARE = 0.7
BATCH_SIZE = 16
DISTILLED_BATCH_SIZE = 8
LABELLED_PERIOD = 4
SUPERVISED = TrainingParams(
    num_steps=3000, learning_rate=2e-3, seed=1, weight_decay=0.01, checkpoint_every=200
)
DISTILLED = TrainingParams(
    num_steps=11_000, learning_rate=1.5e-3, seed=2, weight_decay=0.01, checkpoint_every=500
)
_NUM_SAMPLE_BATCHES = 2


def train_student(workshop: Workshop) -> None:
    """Train (or finish training) the student and export it as int8."""
    config = student_config(workshop.teacher.config, SHAPE)
    weights = _initial(workshop)
    train = train_examples(workshop)
    everything = Examples.joined([train, augmented_examples(workshop)])
    supervised = workshop.changes.apply(SUPERVISED)
    batches = Batches(everything, BATCH_SIZE, supervised.seed)
    _run(workshop, config, weights, batches, supervised, "supervised", _supervised)
    distilled = workshop.changes.apply(DISTILLED)
    source = Interleaved(
        rare=Batches(
            labelled_examples(workshop), DISTILLED_BATCH_SIZE, distilled.seed, teaching(workshop)
        ),
        common=Batches(everything, DISTILLED_BATCH_SIZE, distilled.seed),
        period=LABELLED_PERIOD,
    )
    _run(workshop, config, weights, source, distilled, "distilled", _distilled)
    folder = workshop.directory / "models" / FOLDER
    final = {name: value.detach() for name, value in weights.items()}
    save_model(folder, config, final, is_int8=True)
    workshop.tokenizer.save(folder / "tokenizer.json")


def _supervised(scorer: Scorer) -> Loss:
    def loss(batch: Batch) -> Tensor:
        return losses.sft(scorer.logits(batch), batch.targets, batch.allowed, OPEN_SHARE)

    return loss


def _distilled(scorer: Scorer) -> Loss:
    def loss(batch: Batch) -> Tensor:
        logits = scorer.logits(batch)
        gold = losses.sft(logits, batch.targets, batch.allowed, OPEN_SHARE)
        columns, logprobs = batch.teacher_columns, batch.teacher_logprobs
        if columns is None or logprobs is None:
            return gold
        taught = losses.forward_kl(logits, batch.allowed, columns, logprobs)
        return (1.0 - DISTILLED_SHARE) * gold + DISTILLED_SHARE * taught

    return loss


def _run(
    workshop: Workshop,
    config: ModelConfig,
    weights: Weights,
    batches: Source,
    params: TrainingParams,
    title: str,
    make_loss: Callable[[Scorer], Loss],
) -> None:
    parameters = trainable(weights)
    for tensor in parameters.values():
        tensor.requires_grad_()
    scorer = Scorer(Transformer(config, weights), weights)
    folder = workshop.directory / f"student-{title}"
    trainer = Trainer(parameters, make_loss(scorer), batches, params, folder)
    trainer.resume()
    with workshop.display.task(f"student {title}", params.num_steps) as report:
        trainer.run(report)


def _initial(workshop: Workshop) -> Weights:
    """Return the cut student, made once: every resumed run starts from the same cut."""
    path = workshop.directory / "student-cut.safetensors"
    if not path.exists():
        teacher, train = workshop.teacher, train_examples(workshop)
        sample = Batches(train, BATCH_SIZE, SUPERVISED.seed)
        counts = np.bincount(train.arrays["tokens"], minlength=teacher.config.vocab_size)
        cut = cut_student(
            teacher.config,
            teacher.weights,
            SHAPE,
            [sample.of_step(step) for step in range(_NUM_SAMPLE_BATCHES)],
            torch.from_numpy(counts),
        )
        write_file(path, cut, {"format": "pt"})
    return read_file(path)[0]
