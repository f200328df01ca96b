"""Safetensors in and out: float files, and our int8 files with one scale per output row.

An int8 matrix `name` (R, C) travels with `name.scale` (R,): value = int8 * scale. Everything is
float32 in memory.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from understudy.errors import FailedPrecondition
from understudy.model.config import ModelConfig

SCALE_SUFFIX: Final = ".scale"
CONFIG_NAME: Final = "config.json"
WEIGHTS_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
FLOAT_TYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return every tensor of a file as float32, int8 ones scaled, and the file's metadata.

    Raises FailedPrecondition naming the file, and the tensor where one is at fault.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            raw = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = dict(opened.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise FailedPrecondition(f"{path.name} is no readable safetensors: {error}.") from error
    return dict(_to_float32(path.name, raw)), metadata


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata; the file appears whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    save_file(contiguous, partial, dict(metadata))
    partial.chmod(0o644)  # safetensors writes for the owner alone; services share weights
    partial.replace(path)


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 values and float32 scales (R,) of a matrix (R, C), rounding to nearest."""
    largest = weight.detach().float().abs().amax(dim=1)
    scale = torch.where(largest > 0, largest / 127.0, torch.ones_like(largest))
    return (weight.detach().float() / scale[:, None]).round().to(torch.int8), scale


def save_model(
    directory: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    *,
    is_int8: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `config.json` and `model.safetensors`; int8 applies to matrices, vectors stay float."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if is_int8 and weight.dim() == 2:
            tensors[name], tensors[name + SCALE_SUFFIX] = quantise_rows(weight)
        else:
            tensors[name] = weight.detach().clone()
    write_file(directory / WEIGHTS_NAME, tensors, {"format": "pt", **(metadata or {})})
    (directory / CONFIG_NAME).write_text(json.dumps(config.to_hf(), indent=2) + "\n", "utf-8")


def read_config(directory: Path) -> ModelConfig:
    """Read `config.json` of a model directory."""
    source = f"{directory.name}/{CONFIG_NAME}"
    try:
        raw = json.loads((directory / CONFIG_NAME).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"{source} is unreadable: {error}.") from error
    if not isinstance(raw, dict):
        raise FailedPrecondition(f"{source} holds no JSON object.")
    return ModelConfig.from_hf(raw)


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a model directory: one, or those that its index names."""
    index = directory / INDEX_NAME
    if not index.exists():
        return [directory / WEIGHTS_NAME]
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise FailedPrecondition(f"{index.name} is no readable index: {error!r}.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise FailedPrecondition(f"{index.name} names the file {name!r} outside its folder.")
    return [directory / name for name in sorted(names)]


def _to_float32(file: str, raw: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in raw.items():
        owner = name.removesuffix(SCALE_SUFFIX)
        if owner != name and owner in raw and raw[owner].dtype == torch.int8:
            continue
        if value.dtype == torch.int8:
            yield name, _scaled(file, name, value, raw.get(name + SCALE_SUFFIX))
        elif value.dtype in FLOAT_TYPES:
            yield name, value.float()
        else:
            raise FailedPrecondition(
                f"{file} has {name!r} as {value.dtype}; F32, F16, BF16 and scaled I8 are read.",
                {"tensor": name},
            )


def _scaled(file: str, name: str, value: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        raise FailedPrecondition(
            f"{file} has int8 {name!r} without {name + SCALE_SUFFIX!r}.", {"tensor": name}
        )
    if value.dim() != 2 or tuple(scale.shape) != (value.shape[0],):
        raise FailedPrecondition(
            f"{file} has a scale of shape {tuple(scale.shape)} for {name!r} of shape"
            f" {tuple(value.shape)}; expected one per row.",
            {"tensor": name},
        )
    return value.float() * scale.float()[:, None]
