"""What a package is, and whether this process may run it. Needs torch and the standard library.

Nothing of a package is mapped or loaded as code before its manifest fits.
"""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch

FORMAT: Final = 2
MANIFEST: Final = "package.json"
COMPILED: Final = "compiled-0.pt2"
"""The first program; feed-forwards of other formats or sizes have programs of their own."""
WEIGHTS: Final = "weights.safetensors"
LIBRARY: Final = "kernels.so"
FILL: Final = "__fill_"
"""How names of tensors begin that are nothing but space between two others."""
KINDS: Final = ("ffn", "decoder")
ARITHMETICS: Final = ("reference", "exact", "fast")
MAX_MANIFEST_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 20
_INSTRUCTIONS: Final = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "lzcnt", "abm", "adx"),
    *("vaes", "vpclmulqdq", "gfni", "sha_ni", "avx_vnni", "avx_ifma", "avx_vnni_int8"),
    *("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd", "avx512ifma", "avx512vbmi"),
    *("avx512_vbmi2", "avx512_vnni", "avx512_bitalg", "avx512_vpopcntdq", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)


class PackageError(ValueError):
    """A package that must not be served, or a request that does not fit it."""


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
    arithmetic: str = "reference"
    """`reference`: compiled from float32; else the kernels compute, from the package's library."""
    format: int = FORMAT

    @property
    def programs(self) -> list[str]:
        """The files of the compiled programs, in their order."""
        names = (compiled_name(index) for index in range(len(self.files)))
        return [name for name in names if name in self.files]

    @property
    def needs_library(self) -> bool:
        """Whether the program calls the kernels."""
        return self.arithmetic != "reference"

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


def compiled_name(index: int) -> str:
    """Return the file of a package's program."""
    return f"compiled-{index}.pt2"


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


def _check_types(manifest: Manifest) -> None:
    texts = (manifest.config_digest, manifest.torch_version, *manifest.isa, *manifest.weight_names)
    pairs = (*manifest.files, *manifest.files.values(), *manifest.shape)
    if not all(isinstance(text, str) for text in (*texts, *pairs)):
        raise TypeError("a text is none")
    if not all(isinstance(size, int) for size in manifest.shape.values()):
        raise TypeError("a dimension is no whole number")
    if manifest.arithmetic not in ARITHMETICS:
        raise ValueError(manifest.arithmetic)
    needed = {COMPILED, WEIGHTS} | ({LIBRARY} if manifest.needs_library else set())
    if not needed <= manifest.files.keys():
        raise KeyError(*(needed - manifest.files.keys()))
