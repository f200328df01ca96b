"""The training loop: one optimiser, one schedule, checkpoints, and resume to the same loss."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from services.distiller.batches import Batch
from services.distiller.checkpoint import (
    Checkpoint,
    Progress,
    latest_checkpoint,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)
from understudy.errors import FailedPrecondition

Loss = Callable[[Batch], Tensor]
Listener = Callable[[int, float], None]


class Source(Protocol):
    """Where batches come from; the batch of a step never changes."""

    @property
    def num_per_epoch(self) -> int:
        """How many steps one pass takes."""
        ...

    def of_step(self, step: int) -> Batch:
        """Return the batch of a step."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingParams:
    """How one run trains; part of the run's digest, so a resumed run cannot change it."""

    num_steps: int
    learning_rate: float
    seed: int
    warmup_steps: int = 20
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    checkpoint_every: int = 100
    betas: tuple[float, float] = (0.9, 0.99)

    def digest(self, data_digest: str) -> str:
        """Return the identity of a run over given data."""
        described = json.dumps(asdict(self), sort_keys=True) + data_digest
        return hashlib.sha256(described.encode()).hexdigest()[:16]


class Trainer:
    """Trains named parameters with AdamW over a loss; owns the run's folder of checkpoints."""

    def __init__(
        self,
        trainable: Mapping[str, Tensor],
        loss: Loss,
        batches: Source,
        params: TrainingParams,
        directory: Path,
    ) -> None:
        self._trainable, self._loss, self._batches = trainable, loss, batches
        self._params, self._directory = params, directory
        self._digest = params.digest(f"{len(trainable)}/{batches.num_per_epoch}")
        self._optimiser = _adamw(trainable, params)
        self.step = 0
        self.last_loss = math.nan

    def resume(self) -> bool:
        """Continue from the newest checkpoint; returns whether there was one.

        Raises FailedPrecondition when the checkpoint belongs to a run with other settings.
        """
        path = latest_checkpoint(self._directory)
        if path is None:
            torch.manual_seed(self._params.seed)
            return False
        saved = load_checkpoint(path)
        if saved.progress.run_digest != self._digest:
            raise FailedPrecondition(
                f"{path} belongs to a run with other settings; give the new run its own folder."
            )
        with torch.no_grad():
            for name, parameter in self._trainable.items():
                parameter.copy_(saved.weights[name])
        restore_optimiser(self._optimiser, self._trainable, saved.optimiser)
        torch.set_rng_state(saved.random_state)
        self.step, self.last_loss = saved.progress.step, saved.progress.loss
        return True

    def run(self, listener: Listener, stop_at: int | None = None) -> float:
        """Train to the last step (or `stop_at`) and return the last loss."""
        last = min(self._params.num_steps, stop_at or self._params.num_steps)
        while self.step < last:
            self.last_loss = self._advance()
            self.step += 1
            listener(self.step, self.last_loss)
            if self.step % self._params.checkpoint_every == 0 or self.step == last:
                self.save()
        return self.last_loss

    def save(self) -> Path:
        """Write a checkpoint of this moment."""
        progress = Progress(self.step, self._params.seed, self._digest, self.last_loss)
        moments = optimiser_tensors(self._optimiser, self._trainable)
        state = Checkpoint(progress, self._trainable, moments, torch.get_rng_state())
        return save_checkpoint(self._directory, state)

    def _advance(self) -> float:
        loss = self._loss(self._batches.of_step(self.step))
        if not math.isfinite(value := loss.item()):
            raise FailedPrecondition(f"The loss became {value} at step {self.step}.")
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = list(self._trainable.values())
        torch.nn.utils.clip_grad_norm_(parameters, self._params.max_gradient_norm)
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(self._params, self.step)
        self._optimiser.step()
        return value


def learning_rate(params: TrainingParams, step: int) -> float:
    """Return the rate of a step: linear warm-up, then a cosine that ends at zero."""
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / params.warmup_steps
    decay_steps = max(1, params.num_steps - params.warmup_steps)
    progress = (step - params.warmup_steps) / decay_steps
    return params.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _adamw(trainable: Mapping[str, Tensor], params: TrainingParams) -> torch.optim.AdamW:
    matrices = [tensor for tensor in trainable.values() if tensor.dim() > 1]
    vectors = [tensor for tensor in trainable.values() if tensor.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": params.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=params.learning_rate,
        betas=params.betas,
        fused=True,
    )
