"""Examples that several stages share, made once and kept on disk."""

from __future__ import annotations

from services.distiller.augment import augmented
from services.distiller.examples import Examples
from services.distiller.workshop import Workshop
from understudy.workloads.snips.dataset import load_split

NUM_AUGMENTED = 24_000
AUGMENTATION_SEED = 1


def train_examples(workshop: Workshop) -> Examples:
    """Return the examples of the train split."""
    path = workshop.directory / "examples" / "train.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        workshop.examples(load_split("train"), "walking train rows").save(path)
    return Examples.load(path)


def augmented_examples(workshop: Workshop) -> Examples:
    """Return the examples of rows whose slot values were exchanged."""
    path = workshop.directory / "examples" / "augmented.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = augmented(load_split("train"), NUM_AUGMENTED, AUGMENTATION_SEED)
        workshop.examples(rows, "walking augmented rows").save(path)
    return Examples.load(path)
