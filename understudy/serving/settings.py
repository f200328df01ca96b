"""Reads a frozen dataclass of settings from prefixed environment variables.

A bad value, a missing one and an unknown variable under the prefix are each refused with a
sentence that names the variable, so that a typo never silently means the default.
"""

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from understudy.errors import InvalidArgument

MAX_FILE_BYTES: Final = 1024 * 1024
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})

T = TypeVar("T")


class SettingsError(InvalidArgument):
    """A setting is missing, unknown or malformed; the message names the variable and the remedy."""


def read_settings(cls: type[T], prefix: str, environ: Mapping[str, str]) -> T:
    """Build the dataclass `cls` from `environ`: field `max_context` is `<prefix>MAX_CONTEXT`.

    Field types: str, int, float, bool, Path, `tuple[str, ...]` (comma separated), `Literal` of
    strings, and any of them or None (an empty value is None). Values are stripped. A `ValueError`
    from `__post_init__` is reported as a `SettingsError`.
    """
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    known = {f"{prefix}{name.upper()}": name for name in fields}
    _refuse_unknown(prefix, known, environ)
    values: dict[str, object] = {}
    for variable, name in known.items():
        if variable in environ:
            values[name] = _convert(variable, environ[variable].strip(), hints[name])
        elif _is_required(fields[name]):
            raise SettingsError(f"{variable} is not set and has no default; set it.")
    try:
        return cls(**values)
    except ValueError as error:
        raise SettingsError(f"The settings under {prefix}* do not fit: {error}") from error


def text_or_file(value: str) -> str:
    """The text itself, or for `@path` the content of that UTF-8 file (at most 1 MiB)."""
    if not value.startswith("@"):
        return value
    path = Path(value[1:])
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise SettingsError(f"The file {path} is larger than {MAX_FILE_BYTES} bytes.")
        return content.decode("utf-8")
    except OSError as error:
        raise SettingsError(
            f"The file {path} cannot be read ({error.strerror}); correct the path after '@'."
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"The file {path} is not UTF-8 text: {error.reason}.") from error


def _refuse_unknown(prefix: str, known: Mapping[str, str], environ: Mapping[str, str]) -> None:
    unknown = sorted(name for name in environ if name.startswith(prefix) and name not in known)
    if unknown:
        raise SettingsError(
            f"{unknown[0]} is not a setting of this service; "
            f"remove it or correct its name. Known: {', '.join(sorted(known))}."
        )


def _is_required(field: "dataclasses.Field[object]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(variable: str, text: str, hint: object) -> object:
    if get_origin(hint) in (Union, types.UnionType):
        inner = [option for option in get_args(hint) if option is not type(None)]
        assert len(inner) == 1, f"{variable}: a setting has one type"
        return None if text == "" else _convert(variable, text, inner[0])
    if get_origin(hint) is Literal:
        return _choice(variable, text, cast("tuple[str, ...]", get_args(hint)))
    if get_origin(hint) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if hint is bool:
        return _boolean(variable, text)
    if hint is int or hint is float:
        return _number(variable, text, hint)
    assert hint is str or hint is Path, f"{variable}: no conversion to {hint}"
    return hint(text)


def _choice(variable: str, text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise SettingsError(f"{variable} is {text!r}; set one of {', '.join(choices)}.")
    return text


def _boolean(variable: str, text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise SettingsError(f"{variable} is {text!r}; set true or false.")
    return text.lower() in _TRUE


def _number(variable: str, text: str, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(text)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise SettingsError(f"{variable} is {text!r}; set {what}.") from error
