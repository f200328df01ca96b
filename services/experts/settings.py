"""Settings of the expert worker, prefix UNDERSTUDY_EXPERTS_."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self

from understudy.serving import SettingsError, read_settings

PREFIX: Final = "UNDERSTUDY_EXPERTS_"
MAX_CREDITS: Final = 256
MAX_IDS: Final = 65_536
ALL: Final = "all"
AUTO: Final = "auto"
MAX_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ExpertsSettings:
    """What this worker holds and how much it takes at once."""

    model: str
    """A .gguf file, a safetensors directory, or the name of a model that ships (`smollm2`)."""
    expert_ids: str = ALL
    """Experts of a mixture, or FFN shards of a dense model, such as `0-3,6`; `all` by default."""
    layers: str = ALL
    """Layers held, such as `0-14`; `all` by default."""
    credits: int = 8
    """Messages each attention worker may have in flight; a micro-batch takes one."""
    threads: int = 1
    """Torch threads; 1 by default because the other workers of the machine need the rest."""
    compute: Literal["exact", "fast", "reference"] = "exact"
    """Arithmetic, the same as the attention workers': their setting tells what each means."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where weights lie and sums are computed: `auto` takes a GPU where the container has one that
    torch can use, unless Triton is the executor: it alone owns the GPU then. Never run on a GPU."""
    weights_dtype: Literal["float32", "bfloat16", "float16", "int8", "int4"] = "float32"
    """Type that matrices of 32 bits are kept in; the attention workers' must be the same."""
    executor: Literal["in_process", "triton"] = "in_process"
    """Who computes. Triton's sums are ours up to rounding, so `exact` is then equal up to that;
    a call costs about a millisecond, see docs/benchmarks.md."""
    triton: str = ""
    """host:port of the Triton server's gRPC API; needed with the executor `triton`."""
    triton_model: str = AUTO
    """The model's name there; `auto` is the name that the export gives these layers and shards."""
    triton_fallback: Literal["in_process", "replica"] = "in_process"
    """While Triton is away: compute here, or be NOT_SERVING and leave frames to a replica."""
    triton_min_tokens: int = 1
    """Frames of fewer token rows are computed here; 1 (default) sends all to Triton."""
    triton_timeout_s: float = 2.0
    """Longest wait for Triton's answer; never more than half of what the frame has left."""
    triton_shared_memory: bool = False
    """Large tensors lie in /dev/shm, which the server must share: one host, or one pod's volume."""

    def __post_init__(self) -> None:
        if not 1 <= self.credits <= MAX_CREDITS:
            raise SettingsError(
                f"{PREFIX}CREDITS is {self.credits}; it must be 1 to {MAX_CREDITS}."
            )
        if self.threads < 1:
            raise SettingsError(f"{PREFIX}THREADS is {self.threads}; it must be at least 1.")
        self._check_triton()
        parse_ids(self.expert_ids, f"{PREFIX}EXPERT_IDS")
        parse_ids(self.layers, f"{PREFIX}LAYERS")

    @property
    def is_ready_alone(self) -> bool:
        """Whether the worker serves whatever becomes of Triton."""
        return self.executor == "in_process" or self.triton_fallback == "in_process"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the environment. Raises SettingsError naming a bad or unknown variable."""
        return read_settings(cls, PREFIX, environ)

    def _check_triton(self) -> None:
        if self.executor == "triton" and not self.triton:
            raise SettingsError(
                f"{PREFIX}EXECUTOR is triton and {PREFIX}TRITON is empty; set it to the host:port"
                " of the server's gRPC API."
            )
        if self.triton_min_tokens < 1 or (
            self.triton_min_tokens > 1 and self.triton_fallback == "replica"
        ):
            raise SettingsError(
                f"{PREFIX}TRITON_MIN_TOKENS is {self.triton_min_tokens}; set at least 1, and 1"
                " where the fallback is a replica: nothing is computed here then."
            )
        if not 0 < self.triton_timeout_s <= MAX_TIMEOUT_S:
            raise SettingsError(
                f"{PREFIX}TRITON_TIMEOUT_S is {self.triton_timeout_s:g}; set more than 0 and at"
                f" most {MAX_TIMEOUT_S:g}."
            )


def parse_ids(text: str, variable: str) -> tuple[int, ...] | None:
    """Return the ascending numbers that `0-3,6` names; None for `all`.

    Raises SettingsError naming the variable and the part that is no number or range.
    """
    if text.strip() == ALL:
        return None
    ids: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = (first, last) if dash else (first, first)
        if not all(number.isascii() and number.isdigit() for number in numbers):
            raise SettingsError(f"{variable} has {part!r}; write `all`, `3` or `0-3`.")
        start, stop = int(numbers[0]), int(numbers[1])
        if not start <= stop < MAX_IDS:
            raise SettingsError(
                f"{variable} has the range {part!r}; it must ascend, below {MAX_IDS}."
            )
        ids.update(range(start, stop + 1))
    return tuple(sorted(ids))
