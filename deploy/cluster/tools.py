"""The pinned tools of the cluster and where their binaries lie once built.

Each binary has a folder of its own outside the checkout, named after everything that goes into it,
so a fresh clone finds it again and a changed pin builds one tool anew.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KUBERNETES: Final = "1.34.3"
GO_MODULE_VERSION: Final = "1.26.0"
_VERSION_PACKAGES: Final = ("k8s.io/client-go/pkg/version", "k8s.io/component-base/version")


@dataclass(frozen=True, slots=True)
class Tool:
    """One Go module and the commands built from it."""

    name: str
    module: str
    version: str
    commands: Mapping[str, str]
    """Binary: package it is built from."""
    linker_values: Mapping[str, str]
    """Variables set at link time; tools that do not know their version refuse charts that ask."""
    tags: tuple[str, ...] = ()
    replacements: tuple[str, ...] = ()
    """Lines for `replace`, as the module's own file has them; Go ignores those of a dependency."""
    staging: str = ""
    """Version at which the modules are published that this one requires as v0.0.0."""

    def digest(self) -> str:
        """Hash everything that decides what the binaries are."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def _kubernetes_values() -> dict[str, str]:
    major, minor, _ = KUBERNETES.split(".")
    values = {}
    for package in _VERSION_PACKAGES:
        values[f"{package}.gitVersion"] = f"v{KUBERNETES}"
        values[f"{package}.gitMajor"] = major
        values[f"{package}.gitMinor"] = minor
        values[f"{package}.gitTreeState"] = "clean"
        values[f"{package}.buildDate"] = "1970-01-01T00:00:00Z"
    return values


_COMMANDS: Final = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")

CONTROL_PLANE: Final = (
    Tool(
        name="etcd",
        module="go.etcd.io/etcd/server/v3",
        version="v3.6.16",
        commands={"etcd": "go.etcd.io/etcd/server/v3"},
        linker_values={},
    ),
    Tool(
        name="kubernetes",
        module="k8s.io/kubernetes",
        version=f"v{KUBERNETES}",
        commands={name: f"k8s.io/kubernetes/cmd/{name}" for name in _COMMANDS},
        linker_values=_kubernetes_values(),
        staging=f"v0.{KUBERNETES.split('.', 1)[1]}",
    ),
)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder outside the checkout that keeps what was built."""
    cache = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "understudy" / "cluster"


def binaries_folder(tool: Tool, environ: Mapping[str, str]) -> Path:
    """Return where the tool's binaries lie once they are built."""
    return cache_folder(environ) / f"{tool.name}-{tool.version}-{tool.digest()}"


def is_built(tool: Tool, environ: Mapping[str, str]) -> bool:
    """Tell whether every binary of the tool is there."""
    folder = binaries_folder(tool, environ)
    return all((folder / name).is_file() for name in tool.commands)
