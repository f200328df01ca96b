"""Sums as `sha256sum` writes them, and names that stay below their folder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import FailedPrecondition
from understudy.weights.contents import (
    MAX_FILES,
    Contents,
    check_name,
    parse_digest,
    parse_sums,
)

DIGEST = "0123456789abcdef" * 4


def test_what_sha256sum_prints_is_read() -> None:
    text = f"# weights\n{DIGEST}  config.json\n\n{DIGEST} *./shards/a b.safetensors\n"
    assert parse_sums(text).files == {"config.json": DIGEST, "shards/a b.safetensors": DIGEST}
    assert parse_sums(parse_sums(text).text) == parse_sums(text)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "a//b", "./", "a\\b", ".", "a/.", "x" * 201, "a\tb",
     ".understudy.json", ".understudy/x", "/".join("ab" * 60 for _ in range(6)), "a\u2028b"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(FailedPrecondition):
        check_name(name)
    with pytest.raises(FailedPrecondition):
        parse_sums(f"{DIGEST}  {name}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 files"),
        (f"{DIGEST[:-1]}  a", "Line 1"),
        (f"{DIGEST.upper()}  a", "Line 1"),
        (f"{DIGEST} a\n", "Line 1"),
        (f"{DIGEST}  a\n{DIGEST}  a\n", "twice"),
        (f"{DIGEST}  a\n{DIGEST}  a/b\n", "as a file and as a folder"),
        ("".join(f"{DIGEST}  {number}\n" for number in range(MAX_FILES + 1)), "most"),
    ],
)
def test_sums_that_cannot_be_meant_are_refused(text: str, words: str) -> None:
    with pytest.raises(FailedPrecondition, match=words):
        parse_sums(text)


@pytest.mark.parametrize("digest", ["", DIGEST, f"sha512:{DIGEST}", f"sha256:{DIGEST}0"])
def test_a_digest_that_is_none_is_refused(digest: str) -> None:
    with pytest.raises(FailedPrecondition, match="sha256: and 64"):
        parse_digest(digest)


@given(st.text(max_size=40))
def test_a_name_that_is_taken_stays_below_its_folder(name: str) -> None:
    try:
        Contents({name: DIGEST})
    except FailedPrecondition:
        return
    parts = name.split("/")
    assert not name.startswith("/")
    assert all(part not in ("", ".", "..") for part in parts)
