"""Reads and writes the manifest of a version directory.

{"format": "understudy.version/1", "name": "understudy-slm-snips", "model_digest": "<hex>",
"files": {"calibrator.json": "<sha256>", ...}, "calibrators": ["calibrator.json"],
"facts": {...}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from understudy.errors import FailedPrecondition
from understudy.evidence import Calibrator, load_calibrator

MANIFEST: Final = "manifest.json"
FORMAT: Final = "understudy.version/1"
NATIVE: Final = "native"
_MAX_MANIFEST_BYTES: Final = 1 << 20
_HASH_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Version:
    """An SLM and what makes its answers judgeable."""

    name: str
    """Public name of the model, such as "understudy-slm-snips"."""
    model_digest: str
    """Digest of config and weights as the model library computes it, 64 hex digits."""
    calibrators: tuple[Calibrator, ...]
    evidence: str = NATIVE
    """Whose margins the calibrators were measured on: `native` workers, or an `openai` engine."""

    @property
    def id(self) -> str:
        """What workers report and calibrators name: name and the digest's first eight digits."""
        return f"{self.name}@{self.model_digest[:8]}"

    def calibrator(self, workload: str, output_type: str) -> Calibrator | None:
        """Return the calibrator for a workload and output type, or None: there is no default."""
        return next(
            (
                calibrator
                for calibrator in self.calibrators
                if (calibrator.workload, calibrator.output_type) == (workload, output_type)
            ),
            None,
        )


def read_version(directory: Path) -> Version:
    """Read a version; FailedPrecondition when the manifest or a calibrator does not belong to it.

    Weights are not read here: the worker that loads them reports their digest.
    """
    manifest = _read_manifest(directory / MANIFEST)
    try:
        name, digest = str(manifest["name"]), str(manifest["model_digest"])
        files, calibrators = dict(manifest["files"]), list(manifest["calibrators"])
        evidence = str(dict(manifest.get("facts") or {}).get("evidence", NATIVE))
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(directory / MANIFEST, error) from error
    version = Version(name, digest, ())
    found = [_calibrator(directory, str(file), files, version.id) for file in calibrators]
    return Version(name, digest, tuple(found), evidence)


def write_manifest(
    directory: Path,
    *,
    name: str,
    model_digest: str,
    files: Sequence[str],
    calibrators: Sequence[str],
    facts: Mapping[str, object],
) -> None:
    """Write the manifest over files of the directory, atomically; `facts` says how it was made."""
    hashed = {file: _sha256(directory / file) for file in sorted({*files, *calibrators})}
    body = {
        "format": FORMAT,
        "name": name,
        "model_digest": model_digest,
        "files": hashed,
        "calibrators": list(calibrators),
        "facts": dict(facts),
    }
    staging = directory / f"{MANIFEST}.staging"
    staging.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    staging.replace(directory / MANIFEST)


def _calibrator(
    directory: Path, file: str, files: Mapping[str, object], version_id: str
) -> Calibrator:
    if Path(file).name != file:
        raise FailedPrecondition(f"The manifest in {directory} names {file!r} outside of it.")
    path = directory / file
    if not path.is_file() or _sha256(path) != files.get(file):
        raise FailedPrecondition(
            f"{path} is not the file that its manifest describes; restore the version as a whole."
        )
    calibrator = load_calibrator(path)
    if calibrator.slm_version != version_id:
        raise FailedPrecondition(
            f"{path} was measured on {calibrator.slm_version!r}, not on {version_id!r}; "
            "calibrate this version."
        )
    return calibrator


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise FailedPrecondition(f"{path} has more than {_MAX_MANIFEST_BYTES} bytes.")
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FailedPrecondition(f"There is no readable version at {path}: {error}.") from error
    except ValueError as error:
        raise _malformed(path, error) from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise FailedPrecondition(f"{path} is not a manifest of format {FORMAT!r}.")
    return body


def _malformed(path: Path, error: Exception) -> FailedPrecondition:
    return FailedPrecondition(f"{path} is malformed: {error!r}.")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
