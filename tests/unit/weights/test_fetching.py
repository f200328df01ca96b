"""Models arrive whole and checked, or not at all, whatever the source does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.weights.conftest import FILES, FOLDER, sha, sums
from tests.unit.weights.store_server import StoreServer
from understudy.errors import (
    FailedPrecondition,
    NotFound,
    Unauthenticated,
    Unavailable,
    UnderstudyError,
)
from understudy.weights.contents import Contents, sums_of
from understudy.weights.fetching import ATTEMPTS, LONGEST_PAUSE_S, Fetcher, pause_s
from understudy.weights.settings import ModelSource
from understudy.weights.store import RECORD

OTHER = "llm-fedcba9876543210"
Make = Callable[..., ModelSource]
BIG = "/bucket/llm/shards/model-1.safetensors"


def _published(volume: Path) -> dict[str, bytes]:
    home = volume / FOLDER
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and path.name != RECORD
    }


def test_a_folder_arrives_with_every_file(fetcher: Fetcher, model: Make, volume: Path) -> None:
    assert fetcher.fetch(model())
    assert _published(volume) == FILES
    assert not (volume / ".fetching" / FOLDER).exists()


def test_the_digest_of_its_sums_is_enough_to_know_a_folder(
    fetcher: Fetcher, model: Make, server: StoreServer, volume: Path
) -> None:
    text = sums(FILES).encode()
    server.files["/bucket/llm/SHA256SUMS"] = text
    fetcher.fetch(model(sums="", digest=f"sha256:{sha(text)}"))
    assert _published(volume) == FILES


def test_one_file_is_known_by_its_digest(fetcher: Fetcher, model: Make, volume: Path) -> None:
    digest = f"sha256:{sha(FILES['b'])}"
    fetcher.fetch(model(source="s3://bucket/llm/b", sums="", digest=digest))
    assert _published(volume) == {"b": FILES["b"]}


def test_a_second_run_asks_for_nothing(fetcher: Fetcher, model: Make, server: StoreServer) -> None:
    fetcher.fetch(model())
    server.asked.clear()
    assert not fetcher.fetch(model())
    assert server.asked == []


def test_a_file_of_another_digest_is_refused_by_name_and_nothing_is_published(
    fetcher: Fetcher, model: Make, server: StoreServer, volume: Path
) -> None:
    server.files[BIG] = b"others"
    with pytest.raises(FailedPrecondition, match=r"shards/model-1\.safetensors is sha256:"):
        fetcher.fetch(model())
    assert not (volume / FOLDER).exists()
    server.files[BIG] = FILES["shards/model-1.safetensors"]
    assert fetcher.fetch(model())


def test_sums_that_are_not_the_ones_meant_are_refused(
    fetcher: Fetcher, model: Make, server: StoreServer
) -> None:
    server.files["/bucket/llm/SHA256SUMS"] = sums(FILES).encode()
    with pytest.raises(FailedPrecondition, match=r"SHA256SUMS of s3://bucket/llm/ is sha256:"):
        fetcher.fetch(model(sums="", digest=f"sha256:{'0' * 64}"))


def test_a_truncated_body_is_gone_on_with_where_it_broke_off(
    fetcher: Fetcher, model: Make, server: StoreServer, volume: Path
) -> None:
    server.faults[BIG] = [("cut", 1000), ("cut", 500)]
    fetcher.fetch(model())
    assert server.ranges(BIG) == ["", "bytes=1000-", "bytes=1500-"]
    assert _published(volume) == FILES


def test_a_source_that_cannot_begin_in_the_middle_is_read_again(
    fetcher: Fetcher, model: Make, server: StoreServer, volume: Path
) -> None:
    server.faults[BIG] = [("cut", 1000), ("ignore-range", None)]
    fetcher.fetch(model())
    assert _published(volume) == FILES


def test_an_answer_from_another_place_than_asked_is_refused(
    fetcher: Fetcher, model: Make, server: StoreServer
) -> None:
    server.faults[BIG] = [("cut", 1000), ("wrong-range", None)]
    with pytest.raises(FailedPrecondition, match="bytes from 1000 on"):
        fetcher.fetch(model())


def test_a_server_that_is_gone_for_a_while_is_waited_for_and_then_given_up(
    fetcher: Fetcher, model: Make, server: StoreServer, pauses: list[float]
) -> None:
    server.faults[BIG] = [("cut", 1000), *[("status", 503)] * (ATTEMPTS + 1)]
    with pytest.raises(Unavailable, match="status 503"):
        fetcher.fetch(model())
    assert len(pauses) == ATTEMPTS
    server.faults.clear()
    server.asked.clear()
    fetcher.fetch(model())
    assert server.ranges(BIG) == ["bytes=1000-"]


def test_a_server_that_is_not_there_is_unavailable(fetcher: Fetcher, model: Make) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        fetcher.fetch(model(endpoint="http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (404, NotFound, "does not exist"),
        (403, Unauthenticated, "may not be read"),
        (400, FailedPrecondition, "status 400"),
    ],
)
def test_an_answer_that_waiting_does_not_change_ends_at_once(
    fetcher: Fetcher, model: Make, server: StoreServer, pauses: list[float],
    status: int, kind: type[UnderstudyError], words: str,
) -> None:  # fmt: skip
    server.faults[BIG] = [("status", status)]
    with pytest.raises(kind, match=words) as caught:
        fetcher.fetch(model())
    assert BIG in caught.value.message
    assert pauses == []


def test_what_was_kept_of_another_file_is_thrown_away(
    fetcher: Fetcher, model: Make, server: StoreServer, volume: Path
) -> None:
    digest = sha(FILES["shards/model-1.safetensors"])
    parts = volume / ".fetching" / FOLDER / "parts"
    parts.mkdir(parents=True)
    (parts / f"{digest}.2").write_bytes(b"x" * 100)
    fetcher.fetch(model())
    assert server.ranges(BIG) == ["bytes=100-", ""]
    assert _published(volume) == FILES


def test_what_was_kept_and_is_longer_than_the_file_is_thrown_away(
    fetcher: Fetcher, model: Make, server: StoreServer, volume: Path
) -> None:
    digest = sha(FILES["shards/model-1.safetensors"])
    parts = volume / ".fetching" / FOLDER / "parts"
    parts.mkdir(parents=True)
    (parts / f"{digest}.2").write_bytes(b"x" * 100_000)
    fetcher.fetch(model())
    assert _published(volume) == FILES


def test_a_file_that_came_whole_before_the_cut_is_not_asked_for_again(
    fetcher: Fetcher, model: Make, server: StoreServer, volume: Path
) -> None:
    content = FILES["shards/model-1.safetensors"]
    parts = volume / ".fetching" / FOLDER / "parts"
    parts.mkdir(parents=True)
    (parts / f"{sha(content)}.2").write_bytes(content)
    fetcher.fetch(model())
    assert server.ranges(BIG) == []


def test_a_source_that_has_no_start_is_refused(
    fetcher: Fetcher, model: Make, server: StoreServer, pauses: list[float]
) -> None:
    server.faults[BIG] = [("status", 416)] * 3
    with pytest.raises(FailedPrecondition, match="from its start on"):
        fetcher.fetch(model())
    assert pauses == []


@pytest.mark.parametrize("location", ["http://[", "http://host:99999/x", "ftp://host/x"])
def test_a_redirect_to_what_is_no_address_is_refused(
    fetcher: Fetcher, model: Make, server: StoreServer, location: str
) -> None:
    server.faults[BIG] = [("redirect", location)]
    with pytest.raises(FailedPrecondition, match="redirects to what is no address"):
        fetcher.fetch(model())


@pytest.mark.parametrize("limit", [100, 7500])
def test_more_than_the_limit_is_refused_by_the_file_that_exceeds_it(
    fetcher: Fetcher, model: Make, server: StoreServer, volume: Path, limit: int
) -> None:
    with pytest.raises(FailedPrecondition, match=f"more than {limit} bytes"):
        fetcher.fetch(model(max_bytes=limit))
    assert not (volume / FOLDER).exists()


def test_a_changed_file_of_a_published_folder_is_mended_alone(
    fetcher: Fetcher, model: Make, server: StoreServer, volume: Path
) -> None:
    fetcher.fetch(model())
    (volume / FOLDER / "b").write_bytes(b"rotten")
    (volume / FOLDER / "config.json").unlink()
    server.asked.clear()
    assert fetcher.fetch(model())
    assert {path for path, _ in server.asked} == {"/bucket/llm/b", "/bucket/llm/config.json"}
    assert _published(volume) == FILES


def test_a_file_that_was_only_touched_is_read_and_left(
    fetcher: Fetcher, model: Make, server: StoreServer, volume: Path
) -> None:
    fetcher.fetch(model())
    os.utime(volume / FOLDER / "b")
    server.asked.clear()
    assert not fetcher.fetch(model())
    assert server.asked == []


def test_a_file_that_nothing_names_is_not_published(
    fetcher: Fetcher, model: Make, volume: Path
) -> None:
    stray = volume / ".fetching" / FOLDER / "files" / "stray.bin"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"?")
    fetcher.fetch(model())
    assert _published(volume) == FILES


def test_names_are_quoted_on_their_way(
    fetcher: Fetcher, model: Make, server: StoreServer, volume: Path
) -> None:
    server.files["/bucket/llm/a%20%2B%C3%BC~1"] = b"odd"
    fetcher.fetch(model(sums=sums({"a +ü~1": b"odd"})))
    assert _published(volume) == {"a +ü~1": b"odd"}


def test_a_volume_gives_what_it_has_and_nothing_outside(
    fetcher: Fetcher, model: Make, volume: Path, tmp_path: Path
) -> None:
    source = tmp_path / "claim" / "llm"
    for name, content in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    fetcher.fetch(model(source=f"file://{source}/"))
    assert _published(volume) == FILES
    assert sums_of(source) == Contents({name: sha(content) for name, content in FILES.items()})
    (tmp_path / "secret").write_bytes(b"secret")
    (source / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(NotFound, match="no file of the mounted volume"):
        fetcher.fetch(model(source=f"file://{source}/", sums=sums({"link": b"secret"})))


def test_one_file_that_fails_stops_the_others(
    fetcher: Fetcher, model: Make, server: StoreServer
) -> None:
    files = {f"f{number}": b"x" for number in range(50)}
    with pytest.raises(NotFound):
        fetcher.fetch(model(sums=sums(files)))
    assert len({path for path, _ in server.asked}) < len(files)
    assert threading.active_count() < 20


def test_pauses_grow_to_a_limit() -> None:
    assert [pause_s(failures) for failures in (0, 1, 2)] == [1.0, 2.0, 4.0]
    assert pause_s(100) == LONGEST_PAUSE_S
