from pathlib import Path

import pytest

from understudy.errors import FailedPrecondition
from understudy.model import locate
from understudy.model.locate import locate_model


def test_bundled_model_lies_in_its_wheel() -> None:
    assert locate_model("smollm2").name == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_path_is_taken_as_it_is(tmp_path: Path) -> None:
    assert locate_model(str(tmp_path)) == tmp_path


def test_absent_path_is_refused_naming_it(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"There is no model at .*absent"):
        locate_model(str(tmp_path / "absent"))


def test_absent_wheel_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "find_spec", lambda _: None)

    with pytest.raises(FailedPrecondition, match="install the extra `local`"):
        locate_model("smollm2")
