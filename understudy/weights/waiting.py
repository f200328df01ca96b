"""Holds a worker back until the weights that it starts from are published."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from understudy.errors import DeadlineExceeded
from understudy.weights.store import read_record

EVERY_S: Final = 2.0
TELL_EVERY_S: Final = 30.0
log = logging.getLogger(__name__)


def lacks(root: Path, folder: str) -> str:
    """Return in words what a published folder lacks, or nothing."""
    record = read_record(root / folder)
    if record is None:
        return f"{folder} is not published yet"
    for name, seen in record.items():
        path = root / folder / name
        size = path.stat().st_size if path.is_file() else -1
        if size != seen.size_bytes:
            return f"{folder}/{name} is not what was checked; the Job mends it when it runs again"
    return ""


def wait_for(
    root: Path,
    folders: Sequence[str],
    *,
    limit_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Return once every folder is there as it was checked.

    Says twice a minute what is waited for. Raises DeadlineExceeded at the limit.
    """
    began, told = clock(), -TELL_EVERY_S
    while missing := [reason for folder in folders if (reason := lacks(root, folder))]:
        waited_s = clock() - began
        if waited_s > limit_s:
            raise DeadlineExceeded(
                f"Weights are not there after {limit_s:g} s: {'; '.join(missing)}. The log of the"
                " Job that fetches them says why."
            )
        if waited_s - told >= TELL_EVERY_S:
            told = waited_s
            log.info("Waiting for weights: %s.", "; ".join(missing))
        sleep(EVERY_S)
    log.info("The weights are there: %s.", ", ".join(folders))
