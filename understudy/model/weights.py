"""Loading a model from a GGUF file or a safetensors directory, every tensor checked."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar, cast

import torch
from torch import Tensor

from understudy.errors import FailedPrecondition
from understudy.model.config import ModelConfig
from understudy.model.decoder import Compute
from understudy.model.expanded import Expanded, report_expanded
from understudy.model.families import family_named
from understudy.model.gguf import GgufBlocks, read_gguf, read_gguf_blocks
from understudy.model.linear import Matrix, Weights
from understudy.model.safetensors_io import (
    Int8Rows,
    read_config,
    read_file,
    read_stored,
    weight_files,
)
from understudy.model.shapes import expected_shapes

MatrixType = Literal["float32", "bfloat16", "float16", "int8", "int4"]
"""What matrices of 32 bits are kept as; the last two with a scale for every 32 inputs of a row."""
MATRIX_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
READ_SIZE_BYTES: Final = 1 << 20
STACKED_PATTERN: Final = re.compile(r"(.+\.mlp\.experts)\.((?:gate|up|down)_proj\.weight)")
Value = TypeVar("Value", Tensor, Tensor | Int8Rows)
# Tables of old checkpoints that follow from the config.
RECOMPUTED: Final = ".rotary_emb.inv_freq"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Config, checked tensors, and a digest over config and the weight files' bytes.

    Vectors are float32, matrices in the type they were asked to be kept in; `packed` has those
    matrices that a loader left in a format of their own instead.
    """

    config: ModelConfig
    weights: Mapping[str, Tensor]
    digest: str
    packed: Mapping[str, Matrix] = field(default_factory=dict)
    matrix_type: MatrixType = "float32"
    compute: Compute = "reference"

    @property
    def ffn_digest(self) -> bytes:
        """What two workers must agree on for their feed-forwards to add up: files and numerics."""
        numerics = self.numerics
        if not numerics:
            return bytes.fromhex(self.digest)
        return hashlib.sha256(f"{self.digest}|{numerics}".encode()).digest()

    @property
    def numerics(self) -> str:
        """How results are rounded, as a word; empty for plain torch over float32."""
        kept = "" if self.matrix_type == "float32" else self.matrix_type
        compute = "" if self.compute == "reference" else self.compute
        return "|".join(filter(None, (kept, compute)))

    @property
    def stored(self) -> Weights:
        """All weights by canonical name, for a `Transformer` or `FfnShards`."""
        return {**self.weights, **self.packed}


def load_model(
    path: Path, matrix_type: MatrixType = "float32", compute: Compute = "reference"
) -> LoadedModel:
    """Load a `.gguf` file, or a directory with `config.json` and safetensors.

    For `reference`, matrices are tensors of `matrix_type`; 16-bit ones are computed with in
    float32 (LayerCast), int8 and int4 ones expanded. For the other modes they are packed for the
    kernels in the file's own format, those of 32 bits rounded to `matrix_type`. Raises
    FailedPrecondition naming the file and the tensor that is missing, misshapen, unknown or not
    finite, and the family where it is not known.
    """
    if compute != "reference":
        return _load_packed(path, matrix_type, compute)
    weights: dict[str, Tensor] = {}
    if path.suffix == ".gguf":
        config, tensors = read_gguf(path)
        files = [path]
        for name, tensor in tensors:
            weights[name] = _kept(name, tensor, matrix_type)
    else:
        config = read_config(path)
        files = weight_files(path)
        for file in files:
            for name, tensor in canonical_tensors(config, read_file(file)[0]):
                weights[name] = _kept(name, tensor, matrix_type)
    check_weights(config, weights, path.name)
    return LoadedModel(config, weights, _digest(config, files), matrix_type=matrix_type)


def _load_packed(path: Path, matrix_type: MatrixType, compute: Compute) -> LoadedModel:
    from understudy.model.packed import pack
    from understudy.model.packed_experts import ExpertStacks

    vectors: dict[str, Tensor] = {}
    packed: dict[str, Matrix] = {}
    expanded: list[Expanded] = []
    config, files, stored = _open_stored(path)
    stacks = ExpertStacks(config)
    expected = dict(expected_shapes(config))
    for name, value in stored:
        if isinstance(value, Tensor) and value.dim() == 1:
            vectors[name] = value.float()
            continue
        # 16 bits stay 16 bits: wider ones hold the same values.
        is_wide = isinstance(value, Tensor) and value.dtype == torch.float32
        kept_as = matrix_type if is_wide and _is_rounded(name) else "float32"
        matrix = pack(name, value, kept_as, is_exact=compute == "exact")
        packed[name] = stacks.placed(name, matrix)
        if isinstance(value, Int8Rows) and matrix.format == "F32":
            expanded.append(Expanded(name, "int8", matrix.size_bytes, value.values.nbytes))
    report_expanded(expanded, "their inputs fill no blocks of 32")
    _check_names(expected, {**vectors, **packed}, path.name)
    _check_finite(vectors, path.name)
    digest = _digest(config, files)
    return LoadedModel(config, vectors, digest, packed, matrix_type, compute)


def _open_stored(
    path: Path,
) -> tuple[ModelConfig, list[Path], Iterator[tuple[str, Tensor | GgufBlocks | Int8Rows]]]:
    if path.suffix == ".gguf":
        config, tensors = read_gguf_blocks(path)
        return config, [path], tensors
    config, files = read_config(path), weight_files(path)
    return (
        config,
        files,
        (pair for file in files for pair in canonical_tensors(config, read_stored(file)[0])),
    )


def check_weights(config: ModelConfig, weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse missing, misshapen, unknown or non-finite tensors with FailedPrecondition."""
    _check_names(dict(expected_shapes(config)), weights, source)
    _check_finite(weights, source)


def _check_names(
    expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor | Matrix], source: str
) -> None:
    for name, shape in expected.items():
        if name not in weights:
            raise FailedPrecondition(f"{source} lacks the tensor {name!r}.", {"tensor": name})
        actual = tuple(weights[name].shape)
        if actual != shape:
            raise FailedPrecondition(
                f"{source} has {name!r} of shape {actual}; the config needs {shape}.",
                {"tensor": name, "expected": str(shape), "actual": str(actual)},
            )
    for name in weights.keys() - expected.keys():
        raise FailedPrecondition(f"{source} has the unknown tensor {name!r}.", {"tensor": name})


def _check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    for name, weight in weights.items():
        # A finite sum proves finite terms in one pass; only an infinite one needs a second look.
        if not weight.sum().isfinite() and not weight.isfinite().all():
            raise FailedPrecondition(
                f"{source} has values in {name!r} that are not finite.", {"tensor": name}
            )


def random_weights(config: ModelConfig, seed: int, deviation: float = 0.02) -> dict[str, Tensor]:
    """Return seeded normal weights (norms are ones): the start of training, and tests."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape)
        if len(shape) == 1
        else torch.randn(shape, generator=generator) * deviation
        for name, shape in expected_shapes(config)
    }


def canonical_tensors(
    config: ModelConfig, tensors: Mapping[str, Value]
) -> Iterator[tuple[str, Value]]:
    """Yield tensors of a file of the config's family under canonical names.

    Tensors that hold every expert of a layer are taken apart; those that the forward pass has no
    use for are left out.
    """
    family = family_named(config.family)
    for spelled, tensor in tensors.items():
        name = family.canonical(spelled)
        stacked, value = STACKED_PATTERN.fullmatch(name), cast("object", tensor)
        if stacked and isinstance(value, Tensor) and value.dim() == 3:
            prefix, part = stacked.groups()
            for expert_id, expert in enumerate(value.unbind(0)):
                yield f"{prefix}.{expert_id}.{part}", expert
        elif not name.endswith(RECOMPUTED) and not family.is_ignored(config, name):
            yield name, tensor


def _kept(name: str, tensor: Tensor, matrix_type: MatrixType) -> Tensor:
    if tensor.dim() == 1 or not _is_rounded(name) or matrix_type == "float32":
        return tensor
    if matrix_type in MATRIX_DTYPES:
        return tensor.to(MATRIX_DTYPES[matrix_type])
    from understudy.model.packed import pack

    return pack(name, tensor, matrix_type, is_exact=True).dense()


def _is_rounded(name: str) -> bool:
    # A gate is small, and rounding it changes which experts are chosen.
    return not name.endswith(".mlp.gate.weight")


def _digest(config: ModelConfig, files: list[Path]) -> str:
    state = hashlib.sha256(config.digest().encode())
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(READ_SIZE_BYTES):
                state.update(block)
    return state.hexdigest()
