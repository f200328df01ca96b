"""Settings of the expert worker, prefix UNDERSTUDY_EXPERTS_."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self

from understudy.serving import SettingsError, read_settings

PREFIX: Final = "UNDERSTUDY_EXPERTS_"
MAX_CREDITS: Final = 256
MAX_IDS: Final = 65_536
ALL: Final = "all"


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
    weights_dtype: Literal["float32", "bfloat16", "float16", "int8", "int4"] = "float32"
    """Type that matrices of 32 bits are kept in; the attention workers' must be the same."""

    def __post_init__(self) -> None:
        if not 1 <= self.credits <= MAX_CREDITS:
            raise SettingsError(
                f"{PREFIX}CREDITS is {self.credits}; it must be 1 to {MAX_CREDITS}."
            )
        if self.threads < 1:
            raise SettingsError(f"{PREFIX}THREADS is {self.threads}; it must be at least 1.")
        parse_ids(self.expert_ids, f"{PREFIX}EXPERT_IDS")
        parse_ids(self.layers, f"{PREFIX}LAYERS")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the environment. Raises SettingsError naming a bad or unknown variable."""
        return read_settings(cls, PREFIX, environ)


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
