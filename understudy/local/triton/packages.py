"""Makes the package that the local server serves, once for a file of weights and a machine."""

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from understudy.errors import FailedPrecondition
from understudy.model.decoder import Compute
from understudy.model.locate import locate_model
from understudy_kernels.packaging import check_package, versions

MADE: Final = "made.json"
TIMEOUT_S: Final = 900.0
_SHOWN_CHARS: Final = 2000
log = logging.getLogger(__name__)


def ensure_ffn_package(model: str, repository: Path, compute: Compute) -> str:
    """Return the name of the model's feed-forward package, made where there is none that fits.

    It computes as workers do whose setting is `compute`.

    Raises FailedPrecondition with what the export or the compiler said.
    """
    repository.mkdir(parents=True, exist_ok=True)
    weights = locate_model(model)
    source = {"path": str(weights), "files": _state(weights), "compute": compute}
    name = _made_before(repository, source)
    if name is not None:
        return name
    log.info("Packaging the feed-forwards of %s; about a minute, once.", weights.name)
    with tempfile.TemporaryDirectory(dir=repository, prefix=".") as scratch:
        source_and_target = ("--model", str(weights), "--bundle", scratch)
        export = ("services.experts.export", "ffn", *source_and_target, "--compute", compute)
        name = _run(export).strip()
        _run(("understudy_kernels.package", "build", scratch, "--repository", str(repository)))
    (repository / MADE).write_text(json.dumps({"source": source, "name": name}), "utf-8")
    return name


def _made_before(repository: Path, source: object) -> str | None:
    try:
        made = json.loads((repository / MADE).read_text("utf-8"))
        name = str(made["name"]) if made["source"] == source else ""
        newest = versions(repository, name)[-1]
        check_package(repository / name / str(newest))
    except (OSError, ValueError, KeyError, TypeError, IndexError, FailedPrecondition):
        return None
    return name


def _state(weights: Path) -> list[list[object]]:
    files = sorted(weights.iterdir()) if weights.is_dir() else [weights]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _run(arguments: Sequence[str]) -> str:
    command = (sys.executable, "-m", *arguments)
    try:
        done = subprocess.run(  # noqa: S603  # our own modules
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FailedPrecondition(f"`{' '.join(command)}` took over {TIMEOUT_S:g} s.") from error
    if done.returncode:
        said = done.stderr.strip()[-_SHOWN_CHARS:]
        raise FailedPrecondition(f"`{' '.join(command)}` ended with {done.returncode}: {said}")
    return done.stdout
