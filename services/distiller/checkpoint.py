"""Checkpoints of a training run: safetensors and JSON, written whole or not at all.

A checkpoint is a folder `step-000123` holding the trained weights, the optimiser's moments, the
random state and the data cursor. It is written under a temporary name, synced and renamed, so a
`kill -9` at any moment leaves the last complete one; a run resumed from it draws the same batches
and reaches the same loss.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from understudy.errors import FailedPrecondition

FORMAT = "understudy-checkpoint-1"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: finished steps, the seed its batches come from, its settings' digest."""

    step: int
    seed: int
    run_digest: str
    loss: float


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything a run needs to go on."""

    progress: Progress
    weights: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    random_state: Tensor


def save_checkpoint(directory: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write a checkpoint atomically, then delete all but the newest `keep`."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"step-{checkpoint.progress.step:06d}"
    staging = directory / f".{target.name}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    save_file(_plain(checkpoint.weights), staging / "weights.safetensors")
    save_file(_plain(checkpoint.optimiser), staging / "optimiser.safetensors")
    save_file({"torch": checkpoint.random_state}, staging / "random.safetensors")
    manifest = {"format": FORMAT, **asdict(checkpoint.progress)}
    (staging / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in [*staging.iterdir(), staging]:
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    _sync(directory)
    for old in _steps(directory)[:-keep]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(directory: Path) -> Path | None:
    """Return the newest complete checkpoint, or None."""
    steps = _steps(directory)
    return steps[-1] if steps else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; a damaged or foreign one is refused by name."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest.pop("format") != FORMAT:
            raise FailedPrecondition(f"{path} is not a checkpoint of format {FORMAT}.")
        return Checkpoint(
            progress=Progress(**manifest),
            weights=load_file(path / "weights.safetensors"),
            optimiser=load_file(path / "optimiser.safetensors"),
            random_state=load_file(path / "random.safetensors")["torch"],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise FailedPrecondition(f"The checkpoint {path} cannot be read: {error!r}") from error


def optimiser_tensors(
    optimiser: torch.optim.Optimizer, trainable: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Flatten the optimiser's state to named tensors."""
    return {
        f"{key}/{name}": value
        for name, parameter in trainable.items()
        for key, value in optimiser.state[parameter].items()
    }


def restore_optimiser(
    optimiser: torch.optim.Optimizer, trainable: Mapping[str, Tensor], saved: Mapping[str, Tensor]
) -> None:
    """Put saved state back; a parameter without state is refused by name."""
    for name, parameter in trainable.items():
        suffix = f"/{name}"
        state = {key.removesuffix(suffix): v for key, v in saved.items() if key.endswith(suffix)}
        if not state:
            raise FailedPrecondition(f"The checkpoint holds no optimiser state of {name}.")
        optimiser.state[parameter] = state


def _steps(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("step-*") if (path / "manifest.json").is_file())


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
