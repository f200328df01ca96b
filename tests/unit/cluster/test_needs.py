"""What a machine must have for a cluster, as far as files say it."""

from pathlib import Path

import pytest

from deploy.cluster.__main__ import UNABLE, main
from deploy.cluster.machine import memory_bytes

GIB = 1 << 30


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal: 99999999 kB\nMemAvailable:    {16 * GIB >> 10} kB\n")
    return path


def test_memory_is_what_the_machine_has_available(meminfo: Path, tmp_path: Path) -> None:
    assert memory_bytes(meminfo, (tmp_path / "none",)) == 16 * GIB


@pytest.mark.parametrize(("limit", "expected"), [(f"{4 * GIB}\n", 4), ("max\n", 16)])
def test_the_limit_of_a_container_counts_where_it_has_one(
    meminfo: Path, tmp_path: Path, limit: str, expected: int
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    assert memory_bytes(meminfo, (tmp_path / "memory.max",)) == expected * GIB


def test_a_machine_that_cannot_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["prepare"]) == UNABLE
    said = capsys.readouterr().err
    assert said == (
        "cluster: this machine cannot run one: unshare is missing: install util-linux and "
        "iproute2\n"
    )
