"""The volumes of a pod as folders of this machine.

Files of ConfigMaps, Secrets, tokens and the downward API are swapped as a whole, as the kubelet
does it: a reader sees the old set or the new one, through the link `..data`.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.cluster import namespaces
from deploy.cluster.agent.api import Json
from deploy.cluster.agent.environment import ConfigError, Lookup, contents, field, parse_quantity
from deploy.cluster.agent.launcher import Mount

Tokens = Callable[[Json], str]
"""A `serviceAccountToken` source to the current token."""

Expand = Callable[[str], str]

FILES: Final = ("configMap", "secret", "projected", "downwardAPI")
_DATA: Final = "..data"
_DEFAULT_MODE: Final = 0o644


@dataclass(frozen=True, slots=True)
class File:
    """One file of a volume."""

    content: bytes
    mode: int


def kind_of(volume: Json) -> str:
    """Return the kind of a volume, which is the name of its one field beside `name`."""
    return next((key for key in volume if key != "name"), "emptyDir")


def files(volume: Json, pod: Json, lookup: Lookup, tokens: Tokens) -> dict[str, File]:
    """Return the files of a ConfigMap, Secret, projected or downward volume."""
    kind = kind_of(volume)
    source = volume[kind]
    default = source.get("defaultMode", _DEFAULT_MODE)
    if kind != "projected":
        return _part(kind, source, default, pod, lookup, tokens)
    merged: dict[str, File] = {}
    for part in source.get("sources", []):
        part_kind = next(iter(part))
        merged |= _part(part_kind, part[part_kind], default, pod, lookup, tokens)
    return merged


def _part(
    kind: str, source: Json, mode: int, pod: Json, lookup: Lookup, tokens: Tokens
) -> dict[str, File]:
    match kind:
        case "configMap":
            return _entries("ConfigMap", source.get("name", ""), source, mode, lookup)
        case "secret":
            name = source.get("secretName") or source.get("name", "")
            return _entries("Secret", name, source, mode, lookup)
        case "serviceAccountToken":
            return {source["path"]: File(tokens(source).encode(), 0o600)}
        case "downwardAPI":
            return {
                item["path"]: File(field(pod, item["fieldRef"]["fieldPath"]).encode(), mode)
                for item in source.get("items", [])
            }
    raise ConfigError(f"projected source {kind!r} is not supported")


def _entries(kind: str, name: str, source: Json, mode: int, lookup: Lookup) -> dict[str, File]:
    found = lookup(kind, name)
    if found is None:
        if source.get("optional"):
            return {}
        raise ConfigError(f"{kind} {name!r} not found")
    data = contents(found)
    if not source.get("items"):
        return {key: File(value, mode) for key, value in data.items()}
    chosen = {}
    for item in source["items"]:
        if item["key"] in data:
            chosen[item["path"]] = File(data[item["key"]], item.get("mode", mode))
        elif not source.get("optional"):
            raise ConfigError(f"{kind} {name!r} has no key {item['key']!r}")
    return chosen


def swap_files(folder: Path, wanted: Mapping[str, File]) -> bool:
    """Make the folder hold the wanted files at once; return whether anything changed."""
    link = folder / _DATA
    old = link.resolve() if link.is_symlink() else None
    if old is not None and _read(old) == {name: file.content for name, file in wanted.items()}:
        return False
    fresh = Path(tempfile.mkdtemp(prefix="..", dir=folder))
    fresh.chmod(0o755)
    for name, file in wanted.items():
        target = fresh / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.content)
        target.chmod(file.mode)
    staged = folder / "..data_tmp"
    staged.symlink_to(fresh.name)
    staged.rename(link)
    tops = {name.split("/", 1)[0] for name in wanted}
    for top in tops:
        if not (folder / top).is_symlink():
            (folder / top).symlink_to(f"{_DATA}/{top}")
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.name.startswith("..") and entry.name not in tops:
            entry.unlink()
    if old is not None:
        shutil.rmtree(old)
    return True


def _read(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def make_empty(volume: Json, folder: Path) -> bool:
    """Make the folder of an `emptyDir`; return whether it is in memory, bounded by `sizeLimit`."""
    folder.mkdir(parents=True, exist_ok=True)
    source = volume.get("emptyDir") or {}
    if source.get("medium") != "Memory":
        return False
    limit = source.get("sizeLimit")
    size = f",size={int(parse_quantity(str(limit)))}" if limit else ""
    flags = namespaces.NO_SUID | namespaces.NO_DEVICES
    namespaces.mount("tmpfs", folder, flags, f"mode=777{size}")
    return True


def container_mounts(container: Json, folders: Mapping[str, Path], values: Expand) -> list[Mount]:
    """Return what a container mounts of the pod's volumes."""
    mounts: list[Mount] = []
    for entry in container.get("volumeMounts", []):
        source = folders.get(entry["name"])
        if source is None:
            raise ConfigError(f"volume {entry['name']!r} is not there")
        path = values(entry["subPathExpr"]) if "subPathExpr" in entry else entry.get("subPath", "")
        if path:
            source = _below(source, path)
        is_read_only = bool(entry.get("readOnly"))
        mounts.append(
            {"source": str(source), "target": entry["mountPath"], "is_read_only": is_read_only}
        )
    return mounts


def _below(folder: Path, path: str) -> Path:
    if path.startswith("/") or ".." in Path(path).parts:
        raise ConfigError(f"subPath {path!r} leaves its volume")
    target = folder / path
    if not target.exists():
        target.mkdir(parents=True)
    return target.resolve()
