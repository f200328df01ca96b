"""Typed reading of untyped metadata (`config.json`, GGUF): each refusal names source and key."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from understudy.errors import FailedPrecondition

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping of plain values; every getter raises FailedPrecondition on a bad or missing key."""

    raw: Mapping[str, object]
    source: str

    def text(self, key: str) -> str:
        """Return a required string."""
        return self._read(key, None, lambda value: value if isinstance(value, str) else None)

    def integer(self, key: str, default: int | None = None) -> int:
        """Return an integer; without a default the key is required."""
        return self._read(key, default, _as_integer)

    def optional_integer(self, key: str) -> int | None:
        """Return an integer, or None where the key is absent or null."""
        return None if self.raw.get(key) is None else self.integer(key)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a float; without a default the key is required."""
        return self._read(key, default, _as_number)

    def optional_number(self, key: str) -> float | None:
        """Return a float, or None where the key is absent or null."""
        return None if self.raw.get(key) is None else self.number(key)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a boolean, or the default where the key is absent or null."""
        return self._read(key, default, lambda value: value if isinstance(value, bool) else None)

    def integers(self, key: str) -> tuple[int, ...]:
        """Return one integer or a list of them as a tuple; empty where absent or null."""
        return self._read(key, (), _as_integers)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings as a tuple; empty where absent or null."""
        return self._read(key, (), _as_texts)

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return a list of numbers as a tuple; empty where absent or null."""
        return self._read(key, (), _as_numbers)

    def section(self, key: str) -> "Fields":
        """Return a nested mapping; empty where absent or null."""
        empty: dict[str, object] = {}
        nested = self._read(key, empty, lambda value: value if isinstance(value, dict) else None)
        return Fields(nested, f"{self.source}, {key}")

    def has(self, key: str) -> bool:
        """Say whether the key is there with a value."""
        return self.raw.get(key) is not None

    def require(self, key: str, supported: object) -> None:
        """Refuse any value of `key` but the supported one; absent and null pass."""
        value = self.raw.get(key)
        if value is not None and value != supported:
            raise FailedPrecondition(
                f"{self.source} has {value!r} for {key!r}; only {supported!r} is supported.",
                {"key": key},
            )

    def _read(self, key: str, default: V | None, convert: Callable[[object], V | None]) -> V:
        value = self.raw.get(key)
        if value is None:
            if default is None:
                raise FailedPrecondition(f"{self.source} lacks the key {key!r}.", {"key": key})
            return default
        converted = convert(value)
        if converted is None:
            raise FailedPrecondition(
                f"{self.source} has {value!r:.100} for {key!r}, which is of the wrong type.",
                {"key": key},
            )
        return converted


def _as_integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _as_number(value: object) -> float | None:
    return None if isinstance(value, bool) or not isinstance(value, int | float) else float(value)


def _as_integers(value: object) -> tuple[int, ...] | None:
    items = value if isinstance(value, list) else [value]
    integers = [item for item in map(_as_integer, items) if item is not None]
    return tuple(integers) if len(integers) == len(items) else None


def _as_numbers(value: object) -> tuple[float, ...] | None:
    items = value if isinstance(value, list) else [value]
    numbers = [item for item in map(_as_number, items) if item is not None]
    return tuple(numbers) if len(numbers) == len(items) else None


def _as_texts(value: object) -> tuple[str, ...] | None:
    items = value if isinstance(value, list) else [value]
    texts = [item for item in items if isinstance(item, str)]
    return tuple(texts) if len(texts) == len(items) else None
