"""Where the weights are that the platform serves on this machine.

Everything is looked for before a process starts, so that a missing file is one sentence and not a
crash in a log.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import understudy
from understudy.errors import FailedPrecondition
from understudy.local.settings import PREFIX, LocalSettings
from understudy.model.locate import BUNDLED, locate_model
from understudy.registry import MANIFEST, read_version
from understudy.text.tokenizer import Tokenizer

ADAPTER: Final = "snips-tools"
_ADAPTER_DIR: Final = "snips-adapter"
_SLM_DIR: Final = "slm-snips"


@dataclass(frozen=True, slots=True)
class LocalModels:
    """The models of both pools, all present."""

    llm: str
    """Empty where the LLM is an external engine's."""
    adapters: tuple[str, ...]
    slm: Path
    slm_name: str
    tokenizer: Path


def find_checkout() -> Path:
    """Return the root of the checkout this package lies in. Raises FailedPrecondition."""
    root = Path(understudy.__file__).resolve().parents[1]
    if not (root / "services" / "router").is_dir():
        raise FailedPrecondition(
            "The platform runs from a checkout or an image, and this installation has only the"
            " library: clone the repository and run `make up`, or install the chart."
        )
    return root


def find_models(settings: LocalSettings, root: Path) -> LocalModels:
    """Resolve the models that `settings` names. Raises FailedPrecondition for a missing one."""
    shipped = root / "models"
    slm = settings.slm or shipped / _SLM_DIR
    for name in (MANIFEST, "config.json", "tokenizer.json"):
        _require(slm / name, "the SLM", f"{PREFIX}SLM")
    tokenizer = slm.resolve() / "tokenizer.json"
    llm = ""
    adapters: tuple[str, ...] = ()
    if not settings.llm_pool:
        llm = _find_llm(settings.llm)
        adapters = settings.llm_adapters or _shipped_adapters(settings, shipped / _ADAPTER_DIR)
        if settings.llm != BUNDLED:
            _require_same_vocabulary(Path(llm), tokenizer)
    return LocalModels(
        llm=llm,
        adapters=adapters,
        slm=slm.resolve(),
        slm_name=read_version(slm).name,
        tokenizer=tokenizer,
    )


def _shipped_adapters(settings: LocalSettings, directory: Path) -> tuple[str, ...]:
    """Return the adapter that ships, for the model it was made for."""
    return (f"{ADAPTER}={_find_adapter(directory)}",) if settings.llm == BUNDLED else ()


def _require_same_vocabulary(llm: Path, tokenizer: Path) -> None:
    found = Tokenizer.from_gguf(llm) if llm.suffix == ".gguf" else _tokenizer_beside(llm)
    if found.vocabulary_digest != Tokenizer.from_file(tokenizer).vocabulary_digest:
        raise FailedPrecondition(
            f"The LLM at {llm} has another tokenizer than the SLM, and a request is tokenised once"
            f" for both: distil an SLM from it and point {PREFIX}SLM at that, or choose an LLM of"
            " the SLM's family."
        )


def _tokenizer_beside(llm: Path) -> Tokenizer:
    _require(llm / "tokenizer.json", "the LLM", f"{PREFIX}LLM")
    return Tokenizer.from_file(llm / "tokenizer.json")


def _find_llm(llm: str) -> str:
    if llm != BUNDLED:
        _require(Path(llm), "the LLM", f"{PREFIX}LLM")
    return str(locate_model(llm).resolve())


def _find_adapter(directory: Path) -> Path:
    found = sorted(directory.glob("*.safetensors"))
    _require(found[0] if found else directory / "*.safetensors", "the LLM's adapter", "models/")
    return found[0].resolve()


def _require(path: Path, what: str, where: str) -> None:
    if not path.exists():
        raise FailedPrecondition(
            f"The weights of {what} are not at {path}: restore them from the repository, or point"
            f" {where} at them."
        )
