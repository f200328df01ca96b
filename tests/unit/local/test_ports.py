"""Ports that servers started by us listen on: claimed, so that no two ever get the same."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from understudy.errors import FailedPrecondition
from understudy.local.ports import LOOPBACK, free_port

_FIRST_EPHEMERAL: Final = 32_768
_ANOTHER: Final = (
    "from understudy.local.ports import free_port;"
    " print(free_port(range({0}, {0} + 2)), flush=True); input()"
)


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the first of two ports on which nobody listens, with no claims on either."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return next(x for x in range(28_000, 30_000, 2) if _is_free(x) and _is_free(x + 1))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) != 0


def test_a_port_is_given_once(first: int) -> None:
    span = range(first, first + 2)
    assert {free_port(span), free_port(span)} == set(span)
    with pytest.raises(FailedPrecondition, match=f"between {first} and {first + 1}"):
        free_port(span)


def test_a_port_that_somebody_listens_on_is_passed_over(first: int) -> None:
    with socket.create_server((LOOPBACK, first)):
        assert free_port(range(first, first + 2)) == first + 1


def test_what_another_process_claimed_is_free_again_when_it_ends(first: int) -> None:
    command = (sys.executable, "-c", _ANOTHER.format(first))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        theirs = int(other.stdout.readline())
        (ours,) = {first, first + 1} - {theirs}
        assert free_port(range(first, first + 2)) == ours
        other.communicate(b"\n")
    assert free_port(range(first, first + 2)) == theirs


def test_ports_come_from_below_what_a_kernel_hands_out_by_itself() -> None:
    assert free_port() < _FIRST_EPHEMERAL
