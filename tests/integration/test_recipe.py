"""The whole recipe on a tiny teacher with random weights: every stage, every product.

What the stages learn is not asserted (a random teacher knows nothing); that they hand over to each
other, resume, and leave a version that the registry accepts, is.
"""

import io
import json
from pathlib import Path

import pytest

from services.distiller import recipe
from services.distiller.display import LineDisplay
from services.distiller.stages import calibrate, data, label, slm
from services.distiller.stages.adapter import train_adapter, trained_adapter
from services.distiller.student import StudentShape
from services.distiller.workshop import Changes, Workshop
from understudy.errors import FailedPrecondition
from understudy.model import locate
from understudy.model.adapter import load_adapter
from understudy.model.config import ModelConfig
from understudy.model.weights import LoadedModel, load_model, random_weights
from understudy.registry import read_version
from understudy.workloads.snips.dataset import Row, load_split

NUM_ROWS = 60
CONFIG = ModelConfig(
    family="llama",
    vocab_size=49152,
    hidden_size=16,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    ffn_size=24,
    eos_ids=(2,),
)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    rows: dict[str, list[Row]] = {
        "train": load_split("train")[:NUM_ROWS],
        "calibration": load_split("calibration")[:NUM_ROWS],
    }
    for module in (data, calibrate):
        monkeypatch.setattr(module, "load_split", rows.__getitem__)
    monkeypatch.setattr(data, "NUM_AUGMENTED", 20)
    monkeypatch.setattr(label, "NUM_ROWS", 40)
    monkeypatch.setattr(label, "PART_SIZE", 16)
    monkeypatch.setattr(slm, "SHAPE", StudentShape((0, 2), ffn_size=8, embedding_size=8))
    made = Workshop(tmp_path, LineDisplay(io.StringIO()), Changes(num_steps=2, seed=9))
    weights = random_weights(CONFIG, seed=1, deviation=0.1)
    made.__dict__["teacher"] = LoadedModel(CONFIG, weights, digest="ab" * 32)
    return made


def test_every_stage_hands_over_to_the_next(workshop: Workshop) -> None:
    with pytest.raises(FailedPrecondition, match="run --stage adapter first"):
        label.label_rows(workshop)
    train_adapter(workshop)
    with pytest.raises(FailedPrecondition, match="run --stage label first"):
        slm.train_student(workshop)
    label.label_rows(workshop)
    slm.train_student(workshop)
    calibrate.calibrate(workshop)

    models = workshop.directory / "models"
    adapter = load_adapter(models / "snips-adapter" / "adapter.safetensors", CONFIG, "ab" * 32)
    assert adapter.digest == trained_adapter(workshop).digest
    student = load_model(models / "slm-snips")
    assert student.config.num_layers == 2
    version = read_version(models / "slm-snips")
    assert version.model_digest == student.digest
    assert version.calibrator("snips", "tool_call") is not None
    facts = json.loads((models / "slm-snips" / "manifest.json").read_text())["facts"]
    assert facts["calibration_rows"] == NUM_ROWS


def test_stages_that_are_done_change_nothing(workshop: Workshop) -> None:
    train_adapter(workshop)
    label.label_rows(workshop)
    slm.train_student(workshop)
    path = workshop.directory / "models" / "slm-snips" / "model.safetensors"
    before = path.read_bytes()
    train_adapter(workshop)
    label.label_rows(workshop)
    slm.train_student(workshop)
    assert path.read_bytes() == before


def test_a_missing_teacher_is_a_sentence_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locate, "find_spec", lambda name: None)
    arguments = ["--stage", "adapter", "--out", str(tmp_path), "--threads", "1", "--steps", "1"]
    assert recipe.main(arguments) == 1
    assert "run `make setup`" in capsys.readouterr().err
