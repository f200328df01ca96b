"""What `.ci/run` makes of a cluster's tests that fail, come too late or cannot run."""

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

SCRIPT: Final = Path(__file__).resolve().parents[3] / ".ci" / "run"
MAKE: Final = """
echo "$*" >> made
[ "$1" = test-cluster ] || exit 0
read -r status < statuses
sed -i 1d statuses
exit "$status"
"""
TIMEOUT: Final = 'shift 2; exec "$@"'
LAST_S: Final = 2700
AGAIN: Final = "test-cluster ARGS=--last-failed"


def run(folder: Path, *statuses: int, able: int = 0, after_s: int = 0) -> tuple[int, list[str]]:
    """Run the script over programs that do nothing; return its status and what it made."""
    python = f'[ "$3" != prepare ] || exit {able}'
    for path, body in (
        (".venv/bin/python", python),
        ("bin/make", MAKE),
        ("bin/timeout", TIMEOUT),
        (".ci/run", SCRIPT.read_text()),
    ):
        program = folder / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(body if body.startswith("#!") else f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    (folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    environ = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    ended = subprocess.run(
        [folder / ".ci" / "run"],
        env={**environ, "SECONDS": str(after_s)},
        cwd=folder,
        capture_output=True,
        check=False,
    )
    return ended.returncode, (folder / "made").read_text().splitlines()


@pytest.mark.parametrize(
    ("statuses", "status", "made"),
    [
        ((0,), 0, ["test-cluster", "check"]),
        ((2, 0), 0, ["test-cluster", AGAIN, "check"]),
        ((2, 2), 2, ["test-cluster", AGAIN]),
        ((124,), 124, ["test-cluster"]),
        ((137,), 137, ["test-cluster"]),
        ((2, 124), 124, ["test-cluster", AGAIN]),
    ],
)
def test_what_fails_twice_and_what_comes_too_late_fails_the_run(
    tmp_path: Path, statuses: tuple[int, ...], status: int, made: list[str]
) -> None:
    assert run(tmp_path, *statuses) == (status, ["setup", "triton", *made])


def test_a_machine_that_can_run_no_cluster_is_no_failure_and_any_other_refusal_is(
    tmp_path: Path,
) -> None:
    assert run(tmp_path, able=3) == (0, ["setup", "triton", "check"])
    (tmp_path / "made").unlink()
    assert run(tmp_path, able=1) == (1, ["setup", "triton"])


def test_without_time_the_cluster_is_left_out(tmp_path: Path) -> None:
    assert run(tmp_path, after_s=LAST_S) == (0, ["setup", "triton", "check"])
