"""Room in the volume: files that folders have in common, and what a full one gives up."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.weights.conftest import FILES, FOLDER, sums
from tests.unit.weights.store_server import StoreServer
from understudy.weights.__main__ import main
from understudy.weights.fetching import Fetcher, FileFetch
from understudy.weights.settings import ModelSource
from understudy.weights.store import RECORD
from understudy.weights.web import Body

OTHER = "llm-fedcba9876543210"
Make = Callable[..., ModelSource]


def test_files_that_another_folder_has_are_neither_asked_for_nor_stored_twice(
    fetcher: Fetcher, model: Make, server: StoreServer, volume: Path
) -> None:
    fetcher.fetch(model())
    server.asked.clear()
    server.files["/bucket/llm/b"] = b"another"
    changed = {**FILES, "b": b"another"}
    assert fetcher.fetch(model(folder=OTHER, sums=sums(changed)))
    assert [path for path, _ in server.asked] == ["/bucket/llm/b"]
    for name in ("config.json", "shards/model-1.safetensors"):
        assert (volume / FOLDER / name).samefile(volume / OTHER / name)
    assert (volume / OTHER / "b").read_bytes() == b"another"
    assert (volume / FOLDER / "b").read_bytes() == FILES["b"]


@pytest.mark.parametrize("trouble", ["damaged", "without links"])
def test_files_that_cannot_be_shared_are_fetched(
    fetcher: Fetcher, model: Make, volume: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    fetcher.fetch(model())
    if trouble == "damaged":  # in a way that size and time do not tell
        status = (volume / FOLDER / "b").stat()
        (volume / FOLDER / "b").write_bytes(bytes(len(FILES["b"])))
        os.utime(volume / FOLDER / "b", ns=(status.st_atime_ns, status.st_mtime_ns))
    else:

        def refuse(path: Path, target: Path) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    fetcher.fetch(model(folder=OTHER))
    assert (volume / OTHER / "b").read_bytes() == FILES["b"]
    assert not (volume / FOLDER / "b").samefile(volume / OTHER / "b")
    found = {str(path.relative_to(volume / OTHER)) for path in (volume / OTHER).rglob("*.*")}
    assert found == {"config.json", "shards/model-1.safetensors", RECORD}


def test_a_full_volume_gives_up_what_was_before_and_the_fetch_goes_on(
    model: Make, server: StoreServer, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [f"llm-{digit * 16}" for digit in "012"]
    append = FileFetch._append

    def run(number: int) -> int:
        files = {"weights": b"%d" % number * 5000}
        server.files = {"/bucket/llm/weights": files["weights"]}
        entry = {
            "folder": folders[number],
            "source": "s3://bucket/llm/",
            "sums": sums(files),
            "max_bytes": 10_000,
            "endpoint": server.address,
        }
        monkeypatch.setenv("UNDERSTUDY_WEIGHTS_MODELS", json.dumps([entry]))
        monkeypatch.setenv("UNDERSTUDY_WEIGHTS_DIRECTORY", str(volume))
        return main(["fetch"])

    def append_if_there_is_room(task: FileFetch, body: Body, hashed: Any) -> None:
        if (volume / folders[0]).exists() and (volume / folders[1]).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        append(task, body, hashed)

    monkeypatch.setattr(FileFetch, "_append", append_if_there_is_room)
    assert [run(0), run(1), run(2)] == [0, 0, 0]
    assert {path.name for path in volume.iterdir()} == {".fetching", *folders[1:]}
