"""A version is one unit: what does not belong to it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from understudy.errors import FailedPrecondition
from understudy.evidence import FEATURES, Calibrator, Isotonic
from understudy.registry import MANIFEST, read_version, write_manifest

DIGEST = "3f" * 32
ONES = (1.0,) * len(FEATURES)
CALIBRATOR = Calibrator(
    "slm@3f3f3f3f", "snips", "tool_call", ONES, ONES, ONES, Isotonic(((0.0, 0.5),)), 10, 0.0, ()
)


def write(directory: Path, calibrator: Calibrator = CALIBRATOR) -> Path:
    calibrator.save(directory / "calibrator.json")
    (directory / "model.safetensors").write_bytes(b"weights")
    write_manifest(
        directory,
        name="slm",
        model_digest=DIGEST,
        files=["model.safetensors"],
        calibrators=["calibrator.json"],
        facts={"seed": 1},
    )
    return directory


def test_a_version_is_read_back_with_its_calibrators(tmp_path: Path) -> None:
    version = read_version(write(tmp_path))
    assert version.id == "slm@3f3f3f3f"
    assert version.calibrator("snips", "tool_call") == CALIBRATOR
    assert version.calibrator("snips", "text") is None
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert set(manifest["files"]) == {"model.safetensors", "calibrator.json"}
    assert not (tmp_path / "manifest.json.staging").exists()


def test_a_calibrator_of_other_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="calibrate this version"):
        read_version(write(tmp_path, replace(CALIBRATOR, slm_version="slm@00000000")))


def test_an_exchanged_calibrator_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    replace(CALIBRATOR, ece=0.5).save(tmp_path / "calibrator.json")
    with pytest.raises(FailedPrecondition, match="not the file"):
        read_version(tmp_path)


@pytest.mark.parametrize(
    "change", [{"format": "x"}, {"files": 3}, {"calibrators": ["../evil.json"]}, {"name": None}]
)
def test_malformed_manifests_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = write(tmp_path) / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FailedPrecondition):
        read_version(tmp_path)


def test_missing_and_broken_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no readable version"):
        read_version(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(FailedPrecondition, match="malformed"):
        read_version(tmp_path)
