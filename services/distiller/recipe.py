"""Reproduces the shipped weights: `python -m services.distiller.recipe --stage all --out DIR`.

Every stage resumes where it was interrupted, so a stage may be run as often as needed. On two
cores without an accelerator the stages take about 55, 15, 60 and 20 minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from services.distiller.display import BarDisplay, Display, LineDisplay
from services.distiller.stages.adapter import train_adapter
from services.distiller.stages.calibrate import calibrate
from services.distiller.stages.label import label_rows
from services.distiller.stages.slm import train_student
from services.distiller.workshop import Changes, Workshop
from understudy.errors import UnderstudyError

STAGES: dict[str, Callable[[Workshop], None]] = {
    "adapter": train_adapter,
    "label": label_rows,
    "slm": train_student,
    "calibrate": calibrate,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named stage, or all in order; returns the exit code."""
    parser = argparse.ArgumentParser(prog="recipe", description=__doc__)
    parser.add_argument("--stage", choices=[*STAGES, "all"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and products")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 keeps the default")
    parser.add_argument("--steps", type=int, help="optimiser steps of a training stage")
    parser.add_argument("--seed", type=int, help="seed of initialisation and data order")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    chosen.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    display: Display = BarDisplay(console) if console.is_terminal else LineDisplay(sys.stdout)
    workshop = Workshop(chosen.out, display, Changes(chosen.steps, chosen.seed))
    # Optimiser moments decay into denormals, which are tens of times slower on x86.
    torch.set_flush_denormal(True)
    try:
        for stage in STAGES if chosen.stage == "all" else [chosen.stage]:
            STAGES[stage](workshop)
    except UnderstudyError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; the next run resumes from the newest checkpoint.\n")
        return 130
    finally:
        torch.set_flush_denormal(False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
