"""Reads a Dockerfile into stages, and .dockerignore into rules.

The subset that ours uses: instructions with continued lines and comments, arguments with defaults,
`--name=value` flags. Here-documents, parser directives, shell and wildcard forms of COPY are
refused by line, so that nothing is checked that was not understood.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

KNOWN: Final = frozenset(
    {
        *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK"),
        *("LABEL", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
    }
)
_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class DockerfileError(Exception):
    """The file uses what is not understood here; the message names the line."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its continued lines joined."""

    line: int
    name: str
    flags: Mapping[str, str]
    """`--from=lock` is {"from": "lock"}."""
    text: str
    """Everything after the flags."""

    @property
    def words(self) -> list[str]:
        """The text at its blanks."""
        return self.text.split()


@dataclass(slots=True)
class Stage:
    """One FROM and what follows it."""

    name: str
    base: str
    """An earlier stage's name, or an image with variables replaced by their defaults."""
    line: int
    instructions: list[Instruction] = field(default_factory=list)

    def named(self, *names: str) -> list[Instruction]:
        """Return the instructions of these names."""
        return [one for one in self.instructions if one.name in names]


def parse(text: str) -> dict[str, Stage]:
    """Return the stages by name, in order. Raises DockerfileError for what is not understood."""
    stages: dict[str, Stage] = {}
    arguments: dict[str, str] = {}
    current: Stage | None = None
    for one in _instructions(text):
        if one.name == "FROM":
            current = _stage(one, arguments)
            if current.name in stages:
                raise DockerfileError(f"Line {one.line}: two stages are named {current.name}.")
            stages[current.name] = current
        elif current is not None:
            current.instructions.append(one)
        elif one.name == "ARG":
            name, _, default = one.text.partition("=")
            arguments[name] = default
        else:
            raise DockerfileError(f"Line {one.line}: {one.name} stands before the first FROM.")
    return stages


def _stage(one: Instruction, arguments: Mapping[str, str]) -> Stage:
    image, *rest = one.words
    if len(rest) != 2 or rest[0].upper() != "AS":
        raise DockerfileError(f"Line {one.line}: give the stage a name (FROM image AS name).")
    return Stage(rest[1], _replaced(image, arguments, one.line), one.line)


def _replaced(text: str, arguments: Mapping[str, str], line: int) -> str:
    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not arguments.get(name):
            raise DockerfileError(f"Line {line}: {name} has no default.")
        return arguments[name]

    return _VARIABLE.sub(value, text)


def _instructions(text: str) -> list[Instruction]:
    found: list[Instruction] = []
    start, pending = 0, ""
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line.startswith("#") or not line:
            if re.match(r"#\s*(syntax|escape|check)\s*=", line):
                raise DockerfileError(f"Line {number}: parser directives are not understood here.")
            continue
        start = start if pending else number
        pending += f" {line}" if pending else line
        if pending.endswith("\\"):
            pending = pending.removesuffix("\\").rstrip()
            continue
        found.append(_instruction(start, pending))
        pending = ""
    if pending:
        raise DockerfileError(f"Line {start}: the instruction is not finished.")
    return found


def _instruction(line: int, text: str) -> Instruction:
    name, _, rest = text.partition(" ")
    name, rest = name.upper(), rest.strip()
    if name not in KNOWN:
        raise DockerfileError(f"Line {line}: {name} is not understood here.")
    if "<<" in rest:
        raise DockerfileError(f"Line {line}: here-documents are not understood here.")
    flags: dict[str, str] = {}
    while name != "ARG" and (found := re.match(r"--([a-z-]+)(?:=(\S+))?\s+", rest)):
        flags[found[1]] = found[2] or ""
        rest = rest[found.end() :]
    return Instruction(line, name, flags, rest)


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """What of the build context reaches the builder."""

    patterns: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "IgnoreRules":
        """Read a .dockerignore. Raises DockerfileError for patterns that are not understood."""
        patterns = [line.strip() for line in text.splitlines()]
        kept = tuple(one for one in patterns if one and not one.startswith("#"))
        for one in kept:
            plain = one.removeprefix("!").removeprefix("**/")
            is_known = plain == "*" or one.startswith("**/") or not re.search(r"[*?\[]", plain)
            if not is_known or ("/" in plain and one.startswith("**/")):
                raise DockerfileError(f".dockerignore: {one} is not understood here.")
        return cls(kept)

    def lets_through(self, path: str) -> bool:
        """Whether a path reaches the builder: the last pattern that matches decides."""
        is_let = True
        for pattern in self.patterns:
            if _matches(pattern.removeprefix("!"), PurePosixPath(path)):
                is_let = pattern.startswith("!")
        return is_let


def _matches(pattern: str, path: PurePosixPath) -> bool:
    if pattern == "*":
        return True
    if pattern.startswith("**/"):
        return any(fnmatchcase(part, pattern.removeprefix("**/")) for part in path.parts)
    return path == PurePosixPath(pattern) or path.is_relative_to(pattern)
