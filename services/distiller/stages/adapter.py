"""Stage 1: the LLM's tool-calling adapter, LoRA on the attention projections."""

from __future__ import annotations

from dataclasses import asdict

import torch

from services.distiller import losses
from services.distiller.batches import Batch, Batches
from services.distiller.checkpoint import latest_checkpoint, load_checkpoint
from services.distiller.scoring import Scorer
from services.distiller.stages.data import train_examples
from services.distiller.trainer import Trainer, TrainingParams
from services.distiller.workshop import Workshop
from understudy.errors import FailedPrecondition
from understudy.model.adapter import Adapter, new_adapter, save_adapter
from understudy.model.transformer import Transformer
from understudy.registry import write_manifest

NAME = "snips-tools"
FOLDER = "snips-adapter"
FILE = "adapter.safetensors"
RANK = 32
ALPHA = 64.0
BATCH_SIZE = 16
OPEN_SHARE = 0.1
PARAMS = TrainingParams(num_steps=1000, learning_rate=1e-3, seed=1, checkpoint_every=50)


def train_adapter(workshop: Workshop) -> None:
    """Train (or finish training) the adapter and export it as float16."""
    teacher = workshop.teacher
    adapter = _fresh(workshop)
    for tensor in adapter.tensors.values():
        tensor.requires_grad_()
    model = Transformer(workshop.teacher_config, teacher.weights)
    scorer = Scorer(model, teacher.weights, adapter)

    def loss(batch: Batch) -> torch.Tensor:
        return losses.sft(scorer.logits(batch), batch.targets, batch.allowed, OPEN_SHARE)

    params = workshop.changes.apply(PARAMS)
    batches = Batches(train_examples(workshop), BATCH_SIZE, params.seed)
    trainer = Trainer(adapter.tensors, loss, batches, params, workshop.directory / "adapter")
    trainer.resume()
    with workshop.display.task("adapter", params.num_steps) as report:
        trainer.run(report)
    _export(workshop, adapter, params, trainer.last_loss)


def _export(workshop: Workshop, adapter: Adapter, params: TrainingParams, loss: float) -> None:
    folder = workshop.directory / "models" / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(adapter, folder / FILE, torch.float16)
    write_manifest(
        folder,
        name=NAME,
        model_digest=adapter.base_digest,
        files=[FILE],
        calibrators=[],
        facts={
            "workload": workshop.workload.name,
            "rank": RANK,
            "alpha": ALPHA,
            "batch_size": BATCH_SIZE,
            "training": asdict(params),
            "last_loss": loss,
        },
    )


def trained_adapter(workshop: Workshop) -> Adapter:
    """Return the adapter as the adapter stage left it, rounded as it ships.

    Raises FailedPrecondition while that stage is unfinished.
    """
    path = latest_checkpoint(workshop.directory / "adapter")
    saved = load_checkpoint(path) if path is not None else None
    if saved is None or saved.progress.step < workshop.changes.apply(PARAMS).num_steps:
        raise FailedPrecondition("The adapter is not trained yet; run --stage adapter first.")
    rounded = {name: tensor.half().float() for name, tensor in saved.weights.items()}
    return Adapter(NAME, RANK, ALPHA, workshop.teacher.digest, rounded)


def _fresh(workshop: Workshop) -> Adapter:
    return new_adapter(
        workshop.teacher.config,
        name=NAME,
        rank=RANK,
        alpha=ALPHA,
        base_digest=workshop.teacher.digest,
        seed=workshop.changes.apply(PARAMS).seed,
    )
