"""Runs a compiled package. Needs torch and the standard library, nothing else of ours.

This folder is copied into the model repository, where Triton's python backend imports it; tests and
benchmarks import the original.
"""

import json
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from .manifest import COMPILED, WEIGHTS, Manifest, PackageError, check_package

DENSE: Final = "dense"
"""In names of weights, what stands where an expert's id stands in a mixture."""
MAX_HEADER_BYTES: Final = 100 << 20
CAPACITY_STEP: Final = 64
_DTYPES: Final = {
    "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
}  # fmt: skip


class Compiled(Protocol):
    """AOTInductor's loader of one compiled program."""

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """Run the program."""
        ...


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Map a safetensors file into memory; processes that map the same file share its pages."""
    size = path.stat().st_size
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    header_bytes = int.from_bytes(content[:8].numpy().tobytes(), "little")
    if header_bytes > min(MAX_HEADER_BYTES, size - 8):
        raise PackageError(f"{path} has a header of {header_bytes} bytes; that cannot be.")
    header = json.loads(content[8 : 8 + header_bytes].numpy().tobytes())
    data = content[8 + header_bytes :]
    return {
        name: data[slice(*entry["data_offsets"])].view(_DTYPES[entry["dtype"]]).view(entry["shape"])
        for name, entry in header.items()
        if entry.get("dtype") in _DTYPES
    }


def open_compiled(path: Path) -> Compiled:
    """Load a compiled program. Raises PackageError where torch cannot."""
    try:
        # `torch._inductor.aoti_load_package` is the same and imports the compiler: three seconds.
        loader: Compiled = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)  # noqa: SLF001
    except RuntimeError as error:
        raise PackageError(f"torch cannot load {path}: {error}") from error
    return loader


class FfnPackage:
    """Partial sums of the feed-forwards of some layers and canonical shards.

    The compiled program is one SwiGLU whose weights are inputs, so that every layer, shard and
    expert runs through it; what is added up, and in which order, is as in `understudy.model.ffn`.
    """

    def __init__(self, directory: Path, config_digest: str | None = None) -> None:
        """Check and open a package. Raises PackageError."""
        self.manifest = _of_kind("ffn", check_package(directory, config_digest))
        self._program = open_compiled(directory / COMPILED)
        self._weights = map_tensors(directory / WEIGHTS)
        self._held = {".".join(name.split(".")[:2]) for name in self._weights}
        shape = self.manifest.shape
        self._experts_per_shard = shape["num_experts"] // shape["num_ffn_shards"]

    def compute(
        self,
        layer: int,
        first_shard: int,
        num_shards: int,
        hidden: Tensor,  # (T, D)
        expert_ids: Tensor | None = None,  # (T, K)
        gate_weights: Tensor | None = None,  # (T, K)
    ) -> Tensor:
        """Return the sum (T, D) over consecutive shards, added in ascending order."""
        if f"{layer}.{first_shard}" not in self._held or num_shards < 1:
            raise PackageError(f"Layer {layer}, shard {first_shard} is not in this package.")
        is_mixture = f"{layer}.{first_shard}.{DENSE}.gate" not in self._weights
        if is_mixture == (expert_ids is None or gate_weights is None):
            raise PackageError("Expert ids and weights come exactly with a mixture of experts.")
        total: Tensor | None = None
        for shard in range(first_shard, first_shard + num_shards):
            partial = self._partial(layer, shard, hidden, expert_ids, gate_weights)
            total = partial if total is None else total + partial
        assert total is not None, "there is at least one shard"
        return total

    def _partial(
        self,
        layer: int,
        shard: int,
        hidden: Tensor,
        expert_ids: Tensor | None,
        gate_weights: Tensor | None,
    ) -> Tensor:
        if expert_ids is None or gate_weights is None:
            return self._swiglu(f"{layer}.{shard}.{DENSE}", hidden)
        size = self._experts_per_shard
        is_asked = (gate_weights != 0) & (expert_ids // size == shard)
        total = torch.zeros_like(hidden)
        for expert_id in expert_ids[is_asked].unique().tolist():  # ascending
            rows, choice = torch.where(is_asked & (expert_ids == expert_id))
            partial = self._swiglu(f"{layer}.{shard}.{expert_id}", hidden[rows])
            weights = gate_weights[rows, choice].unsqueeze(-1)
            total = total.index_add(0, rows, partial * weights)
        return total

    def _swiglu(self, prefix: str, hidden: Tensor) -> Tensor:
        try:
            weights = [self._weights[f"{prefix}.{part}"] for part in ("gate", "up", "down")]
        except KeyError as error:
            raise PackageError(f"The feed-forward {prefix} is not in this package.") from error
        return self._program.run([hidden, *weights])[0]


class DecoderPackage:
    """Greedy decoding of several sequences by a whole model, many steps in one call."""

    def __init__(self, directory: Path, config_digest: str | None = None) -> None:
        """Check and open a package. Raises PackageError."""
        self.manifest = _of_kind("decoder", check_package(directory, config_digest))
        self._program = open_compiled(directory / COMPILED)
        weights = map_tensors(directory / WEIGHTS)
        self._weights = [weights[name] for name in self.manifest.weight_names]

    def generate(self, tokens: Tensor, lengths: Tensor, num_steps: int) -> Tensor:
        """Return `num_steps` greedy tokens (B, N) after prompts (B, P) of `lengths` (B,).

        Prompts are padded on the right with any token. Raises PackageError for what does not fit.
        """
        shape = self.manifest.shape
        self._check(tokens, lengths, num_steps)
        batch, width = tokens.shape
        capacity = -(-(width + num_steps + 1) // CAPACITY_STEP) * CAPACITY_STEP
        heads = (batch, capacity, shape["num_kv_heads"], shape["head_dim"])
        cache = torch.zeros((shape["num_layers"], 2, *heads))
        column = torch.arange(width).expand(batch, width)
        # Padding writes to the last place, which no position ever looks at.
        positions = torch.where(column < lengths[:, None], column, capacity - 1)
        chosen = self._step(tokens, positions, lengths - 1, cache)
        answer = [chosen]
        first = torch.zeros(batch, dtype=torch.int64)
        for step in range(num_steps - 1):
            chosen = self._step(chosen[:, None], (lengths + step)[:, None], first, cache)
            answer.append(chosen)
        return torch.stack(answer, dim=1)

    def _step(self, tokens: Tensor, positions: Tensor, last: Tensor, cache: Tensor) -> Tensor:
        chosen, rows = self._program.run([tokens, positions, last, cache, *self._weights])
        # rows (L, 2, B, T, kv_heads, head_dim): the keys and values of these tokens
        cache[:, :, torch.arange(tokens.shape[0])[:, None], positions] = rows
        return chosen

    def _check(self, tokens: Tensor, lengths: Tensor, num_steps: int) -> None:
        shape = self.manifest.shape
        if tokens.dim() != 2 or lengths.shape != tokens.shape[:1] or not tokens.numel():
            raise PackageError(f"Prompts {tuple(tokens.shape)}, lengths {tuple(lengths.shape)}.")
        longest = tokens.shape[1] + num_steps
        if num_steps < 1 or longest > shape["max_positions"]:
            raise PackageError(
                f"{longest} positions are asked for; the model has {shape['max_positions']}."
            )
        if int(lengths.min()) < 1 or int(lengths.max()) > tokens.shape[1]:
            raise PackageError("A prompt's length lies outside its row.")
        if int(tokens.min()) < 0 or int(tokens.max()) >= shape["vocab_size"]:
            raise PackageError(f"A token lies outside the vocabulary of {shape['vocab_size']}.")


def _of_kind(kind: str, manifest: Manifest) -> Manifest:
    if manifest.kind != kind:
        raise PackageError(f"The package is of kind {manifest.kind!r}, not {kind!r}.")
    return manifest
