"""Triton's model repository: packages by name and version, each appearing whole or not at all.

A version is written beside its place and renamed, so a server that loads meanwhile sees the old
version or the new one. Triton never looks by itself (EXPLICIT model control): whoever serves tells
it to load.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

import torch

from understudy.errors import InvalidArgument
from understudy_kernels.compiling import build as library
from understudy_kernels.packaging.bundle import Bundle
from understudy_kernels.packaging.serving.manifest import (
    LIBRARY,
    MANIFEST,
    WEIGHTS,
    Manifest,
    compiled_name,
    hash_file,
    machine_isa,
)

CONFIG: Final = "config.pbtxt"
MODEL: Final = "model.py"
SERVED: Final = ("__init__.py", "decoding.py", "files.py", "manifest.py", "runtime.py")
"""What the model imports, as the package `serving` beside it."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_INPUTS: Final = {
    "ffn": (("place", "TYPE_INT64", "3"), ("hidden", "TYPE_FP32", "-1, {hidden_size}")),
    "decoder": (
        ("tokens", "TYPE_INT64", "-1, -1"),
        ("lengths", "TYPE_INT64", "-1"),
        ("steps", "TYPE_INT64", "1"),
    ),
}
_GATES: Final = (
    ("expert_ids", "TYPE_INT64", "-1, {num_experts_per_token}"),
    ("gate_weights", "TYPE_FP32", "-1, {num_experts_per_token}"),
)
"""Optional: a model with mixtures may have layers that are dense."""
_OUTPUTS: Final = {
    "ffn": (("total", "TYPE_FP32", "-1, {hidden_size}"),),
    "decoder": (("generated", "TYPE_INT64", "-1, -1"),),
}


def publish(
    repository: Path, directory: Path, bundle: Bundle, compiled: Sequence[Path], threads: int
) -> int:
    """Add the bundle in `directory`, compiled, as the newest version of its name; returns it.

    The weights are linked where the file system can, else copied. Raises InvalidArgument for a
    name that is no folder's.
    """
    if not _NAME.fullmatch(bundle.name):
        raise InvalidArgument(
            f"{bundle.name!r} cannot name a model; use a-z, 0-9, '.', '_' and '-'.",
            {"field": "name"},
        )
    home = repository / bundle.name
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=repository, prefix=".") as scratch:
        draft = Path(scratch) / "version"
        _fill(draft, directory, bundle, compiled)
        config = Path(scratch) / CONFIG
        config.write_text(triton_config(bundle, threads), "utf-8")
        config.replace(home / CONFIG)
        version = max(versions(repository, bundle.name), default=0) + 1
        draft.rename(home / str(version))
    return version


def versions(repository: Path, name: str) -> list[int]:
    """Return the versions of a model, ascending."""
    home = repository / name
    found = home.iterdir() if home.is_dir() else ()
    return sorted(int(entry.name) for entry in found if entry.name.isdigit())


def remove_version(repository: Path, name: str, version: int) -> None:
    """Remove a version that no server has loaded; it disappears at once, then its files."""
    with tempfile.TemporaryDirectory(dir=repository, prefix=".") as scratch:
        (repository / name / str(version)).rename(Path(scratch) / "version")


def triton_config(bundle: Bundle, threads: int) -> str:
    """Return the `config.pbtxt` of a bundle's model."""
    gates = _GATES if bundle.shape.get("num_experts") else ()
    parameters = {
        "config_digest": bundle.config_digest,
        "threads": str(threads),
        **bundle.held,
        **{name: str(size) for name, size in bundle.shape.items()},
    }
    lines = [
        f'name: "{bundle.name}"',
        'backend: "python"',
        "max_batch_size: 0",
        *_tensors("input", _INPUTS[bundle.kind], bundle),
        *_tensors("input", gates, bundle, "optional: true "),
        *_tensors("output", _OUTPUTS[bundle.kind], bundle),
        "instance_group [{ kind: KIND_CPU count: 1 }]",
        *(
            f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}'
            for name, value in parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensors(
    what: str, tensors: tuple[tuple[str, str, str], ...], bundle: Bundle, more: str = ""
) -> list[str]:
    return [
        f'{what} {{ name: "{name}" data_type: {dtype} dims: [ {dims.format(**bundle.shape)} ]'
        f" {more}}}"
        for name, dtype, dims in tensors
    ]


def _fill(draft: Path, directory: Path, bundle: Bundle, compiled: Sequence[Path]) -> None:
    draft.mkdir()
    names = [compiled_name(index) for index in range(len(compiled))]
    for name, path in zip(names, compiled, strict=True):
        shutil.copyfile(path, draft / name)
    try:
        os.link(directory / WEIGHTS, draft / WEIGHTS)
    except OSError:  # another file system
        shutil.copyfile(directory / WEIGHTS, draft / WEIGHTS)
    names.append(WEIGHTS)
    if bundle.arithmetic != "reference":
        shutil.copyfile(library(), draft / LIBRARY)
        names.append(LIBRARY)
    serving = resources.files("understudy_kernels.packaging.serving")
    (draft / MODEL).write_bytes(serving.joinpath(MODEL).read_bytes())
    (draft / "serving").mkdir()
    for name in SERVED:
        (draft / "serving" / name).write_bytes(serving.joinpath(name).read_bytes())
    manifest = Manifest(
        kind=bundle.kind,
        config_digest=bundle.config_digest,
        torch_version=str(torch.__version__),
        isa=machine_isa(),
        files={name: hash_file(draft / name) for name in names},
        shape=dict(bundle.shape),
        weight_names=bundle.weight_names,
        arithmetic=bundle.arithmetic,
    )
    (draft / MANIFEST).write_text(manifest.to_json(), "utf-8")
