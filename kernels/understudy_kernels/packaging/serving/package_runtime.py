"""Checks and runs a compiled package. Needs torch and the standard library, nothing else of ours.

Copied into the model repository, where Triton's python backend imports it; tests and benchmarks
import the original. Nothing of a package is mapped or loaded as code before its manifest fits.
"""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

FORMAT: Final = 1
MANIFEST: Final = "package.json"
COMPILED: Final = "compiled.pt2"
WEIGHTS: Final = "weights.safetensors"
KINDS: Final = ("ffn", "decoder")
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_HEADER_BYTES: Final = 100 << 20
CAPACITY_STEP: Final = 64
_READ_BYTES: Final = 1 << 20
_INSTRUCTIONS: Final = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "lzcnt", "abm", "adx"),
    *("vaes", "vpclmulqdq", "gfni", "sha_ni", "avx_vnni", "avx_ifma", "avx_vnni_int8"),
    *("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd", "avx512ifma", "avx512vbmi"),
    *("avx512_vbmi2", "avx512_vnni", "avx512_bitalg", "avx512_vpopcntdq", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
_DTYPES: Final = {
    "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
}  # fmt: skip


class PackageError(ValueError):
    """A package that must not be served, or a request that does not fit it."""


class Compiled(Protocol):
    """AOTInductor's loader of one compiled program."""

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """Run the program."""
        ...


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a package is, and what a machine must have to run it."""

    kind: str
    """`ffn`: partial sums of feed-forwards; `decoder`: greedy decoding by a whole model."""
    config_digest: str
    """Digest (hex) of the model's config and weights, as the services know it."""
    torch_version: str
    isa: tuple[str, ...]
    """Machine type, then every instruction set that the compiler was free to use."""
    files: dict[str, str]
    """SHA-256 (hex) by file name, for every file beside the manifest that is read."""
    shape: dict[str, int]
    """Dimensions of the model that the runtime needs."""
    weight_names: tuple[str, ...] = ()
    """Weights in the order in which the program takes them; empty where they change per call."""
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the manifest as text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read the manifest of a package. Raises PackageError for anything that is none."""
        path = directory / MANIFEST
        try:
            with path.open("rb") as file:
                raw = json.loads(file.read(MAX_MANIFEST_BYTES))
            fields = {**raw, "isa": tuple(raw["isa"]), "weight_names": tuple(raw["weight_names"])}
            manifest = cls(**fields)
            if manifest.format != FORMAT or manifest.kind not in KINDS:
                raise PackageError(
                    f"{path} is of format {manifest.format} and kind {manifest.kind!r}; this"
                    f" release runs format {FORMAT}, {' and '.join(KINDS)}."
                )
            _check_types(manifest)
        except PackageError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PackageError(f"{path} is no manifest of a package: {error!r}.") from error
        return manifest


def machine_isa() -> tuple[str, ...]:
    """Return this machine's type and the instruction sets a compiler may use on it, sorted."""
    found: set[str] = set()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            found.update(value.split())
            break
    known = sorted(found.intersection(_INSTRUCTIONS))
    return (platform.machine(), *(known or [torch.backends.cpu.get_cpu_capability().lower()]))


def check_package(directory: Path, config_digest: str | None = None) -> Manifest:
    """Return a package's manifest if this process may run it; hashes every file.

    Raises PackageError naming the config digest, the torch version, the instruction sets or the
    file that does not match.
    """
    manifest = Manifest.read(directory)
    if config_digest is not None and manifest.config_digest != config_digest:
        raise PackageError(
            f"The package {directory} is of the model with config digest"
            f" {manifest.config_digest[:12]}; {config_digest[:12]} is wanted. Package that model."
        )
    if manifest.torch_version != torch.__version__:
        raise PackageError(
            f"The package {directory} was compiled with torch version {manifest.torch_version};"
            f" this process has {torch.__version__}. Compile it again with this one."
        )
    missing = [name for name in manifest.isa if name not in machine_isa()]
    if missing:
        raise PackageError(
            f"The package {directory} was compiled for an ISA with {', '.join(missing)}, which"
            " this machine lacks. Compile it again on this kind of machine."
        )
    for name, expected in manifest.files.items():
        if Path(name).name != name or hash_file(directory / name) != expected:
            raise PackageError(
                f"The content of {directory / name} is not what its manifest says: it was changed"
                " or cut off. Compile it again."
            )
    return manifest


def hash_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file. Raises PackageError for one that cannot be read."""
    state = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                state.update(block)
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}.") from error
    return state.hexdigest()


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
        self._num_experts, self._num_shards = shape["num_experts"], shape["num_ffn_shards"]

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
        if (expert_ids is None or gate_weights is None) == (self._num_experts > 0):
            raise PackageError("Expert ids and weights come exactly with a mixture of experts.")
        if f"{layer}.{first_shard}" not in self._held or num_shards < 1:
            raise PackageError(f"Layer {layer}, shard {first_shard} is not in this package.")
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
            return self._swiglu(f"{layer}.{shard}.0", hidden)
        size = self._num_experts // self._num_shards
        total = torch.zeros_like(hidden)
        for expert_id in range(shard * size, (shard + 1) * size):
            rows, choice = torch.where(expert_ids == expert_id)
            if rows.numel():
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


def _check_types(manifest: Manifest) -> None:
    texts = (manifest.config_digest, manifest.torch_version, *manifest.isa, *manifest.weight_names)
    pairs = (*manifest.files, *manifest.files.values(), *manifest.shape)
    if not all(isinstance(text, str) for text in (*texts, *pairs)):
        raise TypeError("a text is none")
    if not all(isinstance(size, int) for size in manifest.shape.values()):
        raise TypeError("a dimension is no whole number")
    if not {COMPILED, WEIGHTS} <= manifest.files.keys():
        raise KeyError(COMPILED)
