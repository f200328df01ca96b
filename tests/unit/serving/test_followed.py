"""Files that change under way: what can be used is used, what cannot is told once, tried again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from understudy.errors import InvalidArgument
from understudy.serving.followed import RETRY_S, Followed


class Clock:
    def __init__(self) -> None:
        self.now_s = 5.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("one", encoding="ascii")
    return tmp_path / "file"


def replace(file: Path, text: str) -> None:
    """As the kubelet does: another file of the same name."""
    fresh = file.with_name("fresh")
    fresh.write_text(text, encoding="ascii")
    fresh.replace(file)


class Reader:
    """Reads a file unless something else is in the way."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.obstacle = ""
        self.num_readings = 0

    def __call__(self) -> str:
        self.num_readings += 1
        text = self.file.read_text(encoding="ascii") if self.file.exists() else "bad"
        if self.obstacle or text.startswith("bad"):
            raise InvalidArgument(self.obstacle or f"The file holds {text!r}.")
        return text


def test_new_content_is_in_use_at_once_and_read_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = Reader(file)
    followed = Followed("words", (file,), reader, facts=lambda text: {"word": text})
    assert [followed.current() for _ in range(3)] == ["one"] * 3
    assert reader.num_readings == 1
    with caplog.at_level(logging.INFO):
        replace(file, "two")
        assert [followed.current() for _ in range(3)] == ["two"] * 3
    assert reader.num_readings == 2
    [record] = caplog.records
    assert (record.message, vars(record)["word"]) == ("The words are new.", "two")


def test_content_that_cannot_be_used_leaves_what_is_in_use_and_is_told_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[bool] = []
    clock = Clock()
    followed = Followed("words", (file,), Reader(file), clock_s=clock)
    followed.subscribe(lambda: told.append(followed.is_refused()))
    assert not followed.is_refused()

    for num_before, text in enumerate(("bad", "bad", "bad again")):
        replace(file, text)
        for _ in range(3):
            clock.now_s += RETRY_S
            assert followed.current() == "one"
        assert len(told) == len(caplog.records) == num_before + 1
    assert caplog.records[2].message == (
        "The new words cannot be used; those in use stay. The file holds 'bad again'."
    )
    assert told == [True] * 3

    file.unlink()
    assert (followed.current(), followed.is_refused()) == ("one", True)
    replace(file, "two")
    assert (followed.current(), followed.is_refused()) == ("two", False)


def test_what_was_refused_is_tried_again_without_any_change_of_the_files(file: Path) -> None:
    clock, reader = Clock(), Reader(file)
    followed = Followed("words", (file,), reader, clock_s=clock)
    followed.current()
    reader.obstacle = "The file cannot be read (Permission denied)."
    replace(file, "two")
    assert followed.current() == "one"
    reader.obstacle = ""

    clock.now_s += RETRY_S - 0.1
    assert followed.current() == "one"
    clock.now_s += 0.2
    assert followed.current() == "two"
    assert reader.num_readings == 3


def test_content_that_was_never_usable_is_an_error_until_it_is(file: Path) -> None:
    replace(file, "bad")
    followed = Followed("words", (file,), Reader(file))
    for _ in range(2):
        with pytest.raises(InvalidArgument, match="holds 'bad'"):
            followed.current()
    assert followed.is_refused()
    replace(file, "two")
    assert followed.current() == "two"
