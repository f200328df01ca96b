"""Writes which locked packages each image needs: `python -m deploy.images.closure [--check]`.

The closure of an image's extras over the requirements that installed packages declare, for the
images' Python on Linux, x86-64 and arm64. Only names are kept (`router.txt`): versions and hashes
stay in requirements.lock alone, from which `subset` takes them when an image is built.
"""

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.images.targets import LOCK, PYTHON, ROOT, TARGETS, Target

MACHINES: Final = ("x86_64", "aarch64")
HEADER: Final = "# Packages of requirements.lock in this image; made by `make generate`.\n"


class ClosureError(Exception):
    """A package is needed and is neither locked nor installed."""


@dataclass(frozen=True, slots=True)
class Project:
    """What pyproject.toml and the lock say."""

    name: str
    dependencies: tuple[str, ...]
    extras: Mapping[str, tuple[str, ...]]
    overridden: frozenset[str]
    """Packages that the lock leaves out on purpose."""
    locked: frozenset[str]


def read_project() -> Project:
    """Read pyproject.toml and requirements.lock."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    overrides = content["tool"]["uv"]["override-dependencies"]
    return Project(
        name=content["project"]["name"],
        dependencies=tuple(content["project"]["dependencies"]),
        extras={
            name: tuple(needed)
            for name, needed in content["project"]["optional-dependencies"].items()
        },
        overridden=frozenset(canonicalize_name(Requirement(text).name) for text in overrides),
        locked=locked_names(LOCK.read_text("utf-8")),
    )


def locked_names(lock: str) -> frozenset[str]:
    """Return the names of a lock file."""
    return frozenset(
        canonicalize_name(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock, re.MULTILINE)
    )


def environment(machine: str) -> dict[str, str]:
    """Return the environment that markers are evaluated in."""
    version = ".".join(map(str, PYTHON))
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{version}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{version}.0",
        "python_version": version,
        "sys_platform": "linux",
    }


def closure(target: Target, project: Project) -> list[str]:
    """Return the names of the packages that an image needs, sorted.

    Raises ClosureError naming a package that is not locked, or whose needs are not known because
    it is not installed.
    """
    roots = [*target.packages, *(f"{project.name}[{extra}]" for extra in target.extras)]
    if target.is_ours:
        roots.append(project.name)
    needed = {name for machine in MACHINES for name in _reach(roots, project, environment(machine))}
    return sorted(needed - {project.name})


def _reach(roots: list[str], project: Project, where: Mapping[str, str]) -> set[str]:
    todo, seen = [Requirement(root) for root in roots], set[tuple[str, str]]()
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        for extra in ("", *sorted(one.extras)):
            if (name, extra) not in seen:
                seen.add((name, extra))
                todo += _needs(name, extra, project, where)
    return {name for name, _ in seen}


def _needs(
    name: str, extra: str, project: Project, where: Mapping[str, str]
) -> Iterator[Requirement]:
    for text in _declared(name, extra, project):
        one = Requirement(text)
        is_left_out = canonicalize_name(one.name) in project.overridden
        if not is_left_out and (
            one.marker is None or one.marker.evaluate({**where, "extra": extra})
        ):
            yield one


def _declared(name: str, extra: str, project: Project) -> tuple[str, ...]:
    if name == project.name:
        return project.extras[extra] if extra else project.dependencies
    if name not in project.locked:
        raise ClosureError(f"{name} is needed and not in requirements.lock: run `make lock`.")
    try:
        return tuple(requires(name) or ())
    except PackageNotFoundError as error:
        raise ClosureError(
            f"{name} is not installed, so nobody knows what it needs: run `make setup`."
        ) from error


def main(*, is_check: bool) -> int:
    """Write the lists, or say which are stale; returns the exit status."""
    project, status = read_project(), 0
    for target in TARGETS:
        text = HEADER + "".join(f"{name}\n" for name in closure(target, project))
        if not is_check:
            target.names.write_text(text, "utf-8")
        elif not target.names.is_file() or target.names.read_text("utf-8") != text:
            print(f"deploy/images/{target.names.name} is not what is locked: run `make generate`.")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(is_check="--check" in sys.argv[1:]))
