"""Volumes of files: what they hold, and that they change as a whole."""

from pathlib import Path
from typing import Any

import pytest

from deploy.cluster.agent.environment import ConfigError
from deploy.cluster.agent.volumes import File, container_mounts, files, swap_files

POD: dict[str, Any] = {"metadata": {"name": "p", "namespace": "n"}, "spec": {}, "status": {}}
MAP = {"kind": "ConfigMap", "data": {"a": "1", "b": "2"}}


def lookup(kind: str, name: str) -> dict[str, Any] | None:
    return MAP if (kind, name) == ("ConfigMap", "m") else None


def made(volume: dict[str, Any]) -> dict[str, File]:
    return files({"name": "v", **volume}, POD, lookup, lambda _: "token")


def test_chosen_items_keep_their_modes() -> None:
    items = [{"key": "b", "path": "deep/b", "mode": 0o400}]
    found = made({"configMap": {"name": "m", "items": items}})
    assert found == {"deep/b": File(b"2", 0o400)}


def test_a_projected_volume_joins_its_sources() -> None:
    sources = [
        {"serviceAccountToken": {"path": "token"}},
        {"configMap": {"name": "m"}},
        {
            "downwardAPI": {
                "items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]
            }
        },
    ]
    found = made({"projected": {"sources": sources, "defaultMode": 0o440}})
    assert {name: file.content for name, file in found.items()} == {
        "token": b"token",
        "a": b"1",
        "b": b"2",
        "ns": b"n",
    }
    assert found["token"].mode == 0o600


def test_a_missing_secret_is_named_unless_it_is_optional() -> None:
    with pytest.raises(ConfigError, match="Secret 's' not found"):
        made({"secret": {"secretName": "s"}})
    assert made({"secret": {"secretName": "s", "optional": True}}) == {}


def test_files_are_swapped_behind_one_link(tmp_path: Path) -> None:
    assert swap_files(tmp_path, {"a": File(b"1", 0o644), "deep/b": File(b"2", 0o600)})
    before = (tmp_path / "..data").resolve()
    assert (tmp_path / "deep" / "b").read_bytes() == b"2"
    assert not swap_files(tmp_path, {"a": File(b"1", 0o644), "deep/b": File(b"2", 0o600)})
    assert swap_files(tmp_path, {"a": File(b"new", 0o644)})
    assert (tmp_path / "a").read_bytes() == b"new"
    assert not (tmp_path / "deep").exists()
    assert not before.exists()


def test_a_sub_path_cannot_leave_its_volume(tmp_path: Path) -> None:
    mount = {"name": "v", "mountPath": "/x", "subPath": "../other"}
    with pytest.raises(ConfigError, match="leaves its volume"):
        container_mounts({"volumeMounts": [mount]}, {"v": tmp_path}, str)


def test_mounts_name_their_folders(tmp_path: Path) -> None:
    mounts = [
        {"name": "v", "mountPath": "/x", "readOnly": True},
        {"name": "v", "mountPath": "/y", "subPathExpr": "pod"},
    ]
    assert container_mounts({"volumeMounts": mounts}, {"v": tmp_path}, str) == [
        {"source": str(tmp_path), "target": "/x", "is_read_only": True},
        {"source": str(tmp_path / "pod"), "target": "/y", "is_read_only": False},
    ]
