"""Bundles: exported programs, their weights and what they are, before any machine is chosen."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

import torch
from torch import Tensor
from torch.export import ExportedProgram

from understudy.errors import FailedPrecondition
from understudy_kernels.packaging.serving.manifest import ARITHMETICS, FILL, KINDS, WEIGHTS

BUNDLE: Final = "bundle.json"
ALIGNMENT: Final = 64
MAX_JSON_BYTES: Final = 1 << 20
_NAMES: Final = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.uint8: "U8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle holds besides the program and the weights."""

    name: str
    """The model's name in a repository."""
    kind: str
    """`ffn` or `decoder`."""
    config_digest: str
    """Digest (hex) of the model's config and weights."""
    shape: Mapping[str, int]
    """Dimensions of the model that the runtime needs."""
    weight_names: tuple[str, ...] = ()
    """Weights in the order in which the program takes them; empty where they change per call."""
    held: Mapping[str, str] = field(default_factory=dict)
    """What of the model is inside, in the exporter's words; callers of the server can read it."""
    arithmetic: str = "reference"
    """`reference`: compiled from float32; `exact` or `fast`: calls the kernels, so their library
    goes into the package."""
    program_digests: tuple[str, ...] = ()
    """Digest (hex) of each program: bundles of equal programs share one compilation."""

    @classmethod
    def from_json(cls, text: bytes, source: Path) -> Self:
        """Read `bundle.json`. Raises FailedPrecondition for anything that is none."""
        try:
            raw = json.loads(text)
            lists = {name: tuple(raw[name]) for name in ("weight_names", "program_digests")}
            bundle = cls(**{**raw, **lists})
            sizes_are_whole = all(isinstance(size, int) for size in bundle.shape.values())
            words_are_text = all(isinstance(word, str) for word in bundle.held.values())
            is_known = bundle.kind in KINDS and bundle.arithmetic in ARITHMETICS
            if not is_known or not sizes_are_whole or not words_are_text:
                raise ValueError(bundle.kind)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FailedPrecondition(f"{source} is no bundle: {error!r}.") from error
        return bundle


def write_bundle(
    directory: Path,
    bundle: Bundle,
    programs: Sequence[ExportedProgram],
    weights: Mapping[str, Tensor],
) -> Bundle:
    """Write a bundle into an empty or new directory; returns it with the programs' digests."""
    directory.mkdir(parents=True, exist_ok=True)
    digests = tuple(map(program_digest, programs))
    whole = Bundle(**{**asdict(bundle), "program_digests": digests})
    for index, program in enumerate(programs):
        torch.export.save(program, directory / program_name(index))
    write_tensors(directory / WEIGHTS, weights)
    (directory / BUNDLE).write_text(json.dumps(asdict(whole), indent=1) + "\n", "utf-8")
    return whole


def read_bundle(directory: Path) -> Bundle:
    """Read what a bundle is. Raises FailedPrecondition where there is none."""
    path = directory / BUNDLE
    try:
        with path.open("rb") as file:
            return Bundle.from_json(file.read(MAX_JSON_BYTES), path)
    except OSError as error:
        raise FailedPrecondition(
            f"{path} cannot be read ({error.strerror}); write it with `python -m"
            " services.experts.export`."
        ) from error


def program_name(index: int) -> str:
    """Return the file of a bundle's program."""
    return f"program-{index}.pt2"


def read_program(directory: Path, index: int = 0) -> ExportedProgram:
    """Load a program of a bundle. Raises FailedPrecondition where torch cannot."""
    path = directory / program_name(index)
    try:
        return torch.export.load(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise FailedPrecondition(f"{path} is no exported program.") from error


def program_digest(program: ExportedProgram) -> str:
    """Return the SHA-256 (hex) of a program's code, ranges, and the shapes of its inputs."""
    shapes = [
        (node.name, str(value.dtype), [str(size) for size in value.shape])
        for node in program.graph.nodes
        if node.op == "placeholder" and isinstance(value := node.meta.get("val"), Tensor)
    ]
    parts = (program.graph_module.code, str(program.range_constraints), str(shapes))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file in which every tensor starts at a multiple of 64 bytes."""
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        start = -(-end // ALIGNMENT) * ALIGNMENT
        if start != end:  # the format knows no gaps: a named tensor fills one
            fill = {"dtype": "U8", "shape": [start - end], "data_offsets": [end, start]}
            header[f"{FILL}{end}"] = fill
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        base = file.tell()
        for name, tensor in tensors.items():
            entry = header[name]
            assert isinstance(entry, dict), "every entry is a mapping"
            file.write(bytes(base + entry["data_offsets"][0] - file.tell()))
            file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
