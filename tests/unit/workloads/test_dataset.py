"""The split is exact, disjoint and deterministic; malformed rows are refused by line."""

import gzip
from pathlib import Path

import pytest

from understudy.errors import InvalidArgument
from understudy.workloads.snips.dataset import Row, load_rows, load_split, text_hash
from understudy.workloads.snips.tools import REPEATABLE, SLOTS

ROW = '{"text": "play it", "tool": "PlayMusic", "arguments": {"sort": ["a", "b"]}}'


def test_splits_have_their_sizes_and_share_no_text() -> None:
    splits = [load_split("dev"), load_split("calibration"), load_split("train")]
    assert [len(split) for split in splits] == [2000, 1500, 10284]
    texts = [{row.text for row in split} for split in splits]
    assert not texts[0] & texts[1]
    assert not (texts[0] | texts[1]) & texts[2]


def test_rows_are_ranked_by_the_hash_of_their_text() -> None:
    hashes = [text_hash(row.text) for row in load_split("dev") + load_split("calibration")]
    assert hashes == sorted(hashes)


def test_every_gold_call_fits_the_tools() -> None:
    def fits(row: Row) -> bool:
        return all(
            slot in SLOTS[row.gold.name]
            and (isinstance(value, str) or (row.gold.name, slot) in REPEATABLE)
            for slot, value in row.gold.arguments.items()
        )

    assert all(map(fits, load_split("train")))


def test_separators_that_json_allows_inside_strings_end_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = "play\u2028it\u2029now\x85"
    path.write_text(ROW.replace("play it", text) + "\r\n" + ROW + "\n", encoding="utf-8")
    assert [row.text for row in load_rows(path)] == [text, "play it"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_are_read_plain_and_compressed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = f"{ROW}\n\n{ROW}\n".encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    rows = load_rows(path)
    assert len(rows) == 2
    assert rows[0].gold.arguments == {"sort": ["a", "b"]}


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"text": "x"}', '{"text": 1, "tool": "t", "arguments": {}}',
             '{"text": "x", "tool": "t", "arguments": {"s": [1]}}']
)  # fmt: skip
def test_a_malformed_row_is_refused_by_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{ROW}\n{line}\n")
    with pytest.raises(InvalidArgument, match=r"rows\.jsonl, line 2"):
        load_rows(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"absent\.jsonl"):
        load_rows(tmp_path / "absent.jsonl")
