"""LoRA adapters on the attention projections (arXiv 2106.09685), chosen per row of a batch.

Only projections from and to the hidden states are adapted (q, k, v and o; the downward ones of
latent attention), so feed-forward and expert weights are the same for every request, whatever
adapter it names. An adapter's layer is an attention: LongCat has two of them in a layer.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from understudy.errors import FailedPrecondition, Internal
from understudy.model.config import ModelConfig
from understudy.model.linear import Matrix, Plain
from understudy.model.safetensors_io import read_file, write_file
from understudy.model.shapes import attention_shapes

PROJECTIONS: Final = ("q_proj", "q_a_proj", "k_proj", "v_proj", "kv_a_proj_with_mqa", "o_proj")
FORMAT: Final = "understudy-lora-1"


@dataclass(frozen=True)
class Adapter:
    """A low-rank change of the attention projections: `scale * up @ down` added to each.

    `tensors` maps `layers.<i>.<projection>.down` (rank, in) and `.up` (out, rank); `packed` has
    them as a compiled model multiplies them, where one does.
    """

    name: str
    rank: int
    alpha: float
    base_digest: str
    tensors: Mapping[str, Tensor]
    packed: Mapping[str, Matrix] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """The factor on the low-rank product."""
        return self.alpha / self.rank

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of base, rank, alpha and every tensor; the name is only a label."""
        state = hashlib.sha256(
            f"{FORMAT}|{self.base_digest}|{self.rank}|{float(self.alpha)}".encode()
        )
        for key in sorted(self.tensors):
            state.update(f"|{key}|".encode())
            state.update(self.tensors[key].detach().float().contiguous().numpy().tobytes())
        return state.hexdigest()

    def factors(self, layer: int, projection: str) -> tuple[Matrix, Matrix]:
        """Return `down` (rank, in) and `up` (out, rank) of one projection."""
        prefix = f"layers.{layer}.{projection}"
        return self._factor(f"{prefix}.down"), self._factor(f"{prefix}.up")

    def _factor(self, key: str) -> Matrix:
        return self.packed[key] if self.packed else Plain(self.tensors[key])


def adapter_shapes(config: ModelConfig, rank: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the name and shape of every tensor of an adapter of this rank for this model."""
    for layer in range(config.num_attentions):
        for name, shape in attention_shapes(config, layer):
            projection = name.removesuffix(".weight").rpartition(".")[2]
            if projection in PROJECTIONS:
                size_out, size_in = shape
                yield f"layers.{layer}.{projection}.down", (rank, size_in)
                yield f"layers.{layer}.{projection}.up", (size_out, rank)


def new_adapter(
    config: ModelConfig, *, name: str, rank: int, alpha: float, base_digest: str, seed: int
) -> Adapter:
    """Return a fresh adapter that changes nothing yet: `down` is random, `up` is zero."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in adapter_shapes(config, rank):
        is_down = key.endswith(".down")
        bound = (3.0 / shape[1]) ** 0.5
        drawn = torch.rand(shape, generator=generator) * 2 * bound - bound if is_down else None
        tensors[key] = torch.zeros(shape) if drawn is None else drawn
    return Adapter(name, rank, alpha, base_digest, tensors)


def save_adapter(adapter: Adapter, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write one safetensors file; `dtype` float16 halves it. The rename into place is atomic."""
    metadata = {
        "format": FORMAT,
        "name": adapter.name,
        "rank": str(adapter.rank),
        "alpha": repr(float(adapter.alpha)),
        "base_digest": adapter.base_digest,
    }
    tensors = {key: value.detach().to(dtype) for key, value in adapter.tensors.items()}
    write_file(path, tensors, metadata)


def load_adapter(path: Path, config: ModelConfig, base_digest: str | None = None) -> Adapter:
    """Read an adapter and check every tensor against `config`, and its base where one is given.

    Raises FailedPrecondition naming the file and the tensor or key that does not fit.
    """
    tensors, metadata = read_file(path)
    if metadata.get("format") != FORMAT:
        raise FailedPrecondition(f"{path.name} is not an adapter of format {FORMAT}.")
    try:
        rank, alpha = int(metadata["rank"]), float(metadata["alpha"])
        name, base = metadata["name"], metadata["base_digest"]
    except (KeyError, ValueError) as error:
        raise FailedPrecondition(f"{path.name} has bad adapter metadata: {error}.") from error
    if rank <= 0 or not math.isfinite(alpha):
        raise FailedPrecondition(
            f"{path.name} has rank {rank} and alpha {alpha}; a rank is at least 1, alpha finite."
        )
    if base_digest is not None and base != base_digest:
        raise FailedPrecondition(
            f"Adapter {name!r} was made for base {base[:12]}, this model is {base_digest[:12]}.",
            {"adapter": name},
        )
    _check_tensors(path, tensors, config, rank)
    return Adapter(name, rank, alpha, base, tensors)


def _check_tensors(
    path: Path, tensors: Mapping[str, Tensor], config: ModelConfig, rank: int
) -> None:
    expected = dict(adapter_shapes(config, rank))
    for key, shape in expected.items():
        if key not in tensors:
            raise FailedPrecondition(f"{path.name} lacks the tensor {key!r}.", {"tensor": key})
        if tuple(tensors[key].shape) != shape:
            raise FailedPrecondition(
                f"{path.name} has {key!r} of shape {tuple(tensors[key].shape)}; rank {rank} on"
                f" this model needs {shape}.",
                {"tensor": key},
            )
        if not tensors[key].isfinite().all():
            raise FailedPrecondition(
                f"{path.name} has values in {key!r} that are not finite.", {"tensor": key}
            )
    for key in tensors.keys() - expected.keys():
        raise FailedPrecondition(f"{path.name} has the unknown tensor {key!r}.", {"tensor": key})


@dataclass(frozen=True, slots=True)
class AdapterGroup:
    """Rows of a batch that share an adapter; `rows` None means all of them."""

    adapter: Adapter
    rows: Tensor | None = None  # (n,) int64


class AdapterBatch:
    """The adapters of one batch; rows that no group names stay untouched."""

    def __init__(self, groups: Sequence[AdapterGroup]) -> None:
        self._groups = tuple(groups)
        if len(groups) > 1 and any(group.rows is None for group in groups):
            raise Internal("Several adapters in one batch must each name their rows.")

    @classmethod
    def of_rows(
        cls, adapters: Sequence[Adapter | None], device: torch.device | None = None
    ) -> "AdapterBatch | None":
        """Group a batch on `device` by the adapter of each row; None where no row has any."""
        groups: dict[int, tuple[Adapter, list[int]]] = {}
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                groups.setdefault(id(adapter), (adapter, []))[1].append(row)
        if not groups:
            return None
        if len(groups) == 1:
            adapter, rows = next(iter(groups.values()))
            if len(rows) == len(adapters):
                return cls([AdapterGroup(adapter)])
        return cls(
            [
                AdapterGroup(adapter, torch.tensor(rows, device=device))
                for adapter, rows in groups.values()
            ]
        )

    def apply(self, layer: int, projection: str, hidden: Tensor, output: Tensor) -> Tensor:
        """Return `output` (T, out) with each group's change of `hidden` (T, in) added."""
        for group in self._groups:
            down, up = group.adapter.factors(layer, projection)
            rows = group.rows
            chosen = hidden if rows is None else hidden.index_select(0, rows)
            change = up.multiply(down.multiply(chosen) * group.adapter.scale)
            output = output + change if rows is None else output.index_add(0, rows, change)
        return output
