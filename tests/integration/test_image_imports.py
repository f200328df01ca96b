"""Every entry point of an image imports with that image's packages and files, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from deploy.images.checks import copied
from deploy.images.dockerfile import parse
from deploy.images.subset import names
from deploy.images.targets import DOCKERFILE, ROOT, TARGETS, Target

PROBE = Path(__file__).with_name("isolated_imports.py")
STAGES = parse(DOCKERFILE.read_text(encoding="utf-8"))
BY_NAME = {target.name: target for target in TARGETS}


def packages(target: Target) -> list[str]:
    return names(target.names.read_text(encoding="utf-8"))


def run(
    target: Target,
    modules: tuple[str, ...],
    *,
    without: tuple[str, ...] = (),
    sources: list[str] | None = None,
    roots: tuple[str, ...] = ("", "kernels"),
) -> dict[str, Any]:
    """Import modules where only the image's packages (but those `without`) and sources are."""
    kept = [name for name in packages(target) if name not in without]
    site = Path(str(distribution("packaging").locate_file("")))
    shown = copied(STAGES[target.name], STAGES) if sources is None else sources
    told = {
        "site": str(site),
        "files": [
            str(site / file)
            for name in kept
            for file in distribution(name).files or ()
            if file.suffix in (".py", ".so")
        ],
        "distributions": kept,
        "roots": [str(ROOT / root) for root in roots],
        "sources": [str(ROOT / source) for source in shown],
        "modules": modules,
    }
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "ignore", str(PROBE)],
        input=json.dumps(told), capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["router", "worker", "distiller"])
def test_every_entry_point_imports_with_its_images_packages_alone(name: str) -> None:
    target = BY_NAME[name]
    mains = tuple(
        f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module
        for module in target.modules
    )
    found = run(target, mains)
    assert found == {"failures": {}, "absent": {}}


def test_triton_has_what_a_model_repository_imports() -> None:
    # The backend puts the model's folder on the path, in which they are the package `serving`.
    packaging = "kernels/understudy_kernels/packaging"
    found = run(
        BY_NAME["triton"],
        ("serving.manifest", "serving.runtime", "numpy"),
        sources=[f"{packaging}/serving"],
        roots=(packaging,),
    )
    assert found == {"failures": {}, "absent": {}}


def test_the_router_image_has_no_torch() -> None:
    target = BY_NAME["router"]
    assert not {"torch", "triton", "safetensors"} & set(packages(target))
    found = run(target, ("torch", "safetensors", "services.attention.__main__"))
    assert len(found["failures"]) == 3


@pytest.mark.parametrize(
    "missing", ["tokenizers", "llguidance", "opentelemetry-api", "cryptography"]
)
def test_a_package_that_is_missing_is_found(missing: str) -> None:
    found = run(BY_NAME["router"], ("services.router.__main__",), without=(missing,))
    (failure,) = found["failures"].values()
    assert re.split("[-_]", missing)[0] in failure


def test_a_package_that_is_imported_later_is_missed_as_well() -> None:
    found = run(BY_NAME["router"], ("services.router.__main__",), without=("kubernetes",))
    assert found == {"failures": {}, "absent": {"kubernetes": ["kubernetes_api.py"]}}


def test_a_source_that_is_not_copied_is_found() -> None:
    shown = copied(STAGES["router"], STAGES)
    found = run(
        BY_NAME["router"],
        ("services.router.__main__",),
        sources=[one for one in shown if one != "services/router"],
    )
    assert "services.router" in found["failures"]["services.router.__main__"]
