"""Nothing outlives a cluster, even where the one who started it is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cluster.layout import ROOT
from tests.cluster.kube import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def processes_with(word: str) -> list[int]:
    """Return the processes whose command line has this word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.encode() in each for each in words):
            found.append(int(folder.name))
    return found


def start(state: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "deploy.cluster", "--state", str(state), "run", "sleep", "900"]
    with (state.parent / "driver.log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_every_process_ends_with_the_driver(tmp_path: Path, number: signal.Signals) -> None:
    state = tmp_path / "inner"
    driver = start(state)
    try:
        etcd = f"--data-dir={state / 'etcd'}"
        wait_until(lambda: bool(processes_with(etcd)), "a control plane to start")
        os.kill(driver.pid, number)
        driver.wait()
        wait_until(lambda: not processes_with(str(state)), "everything to end")
    finally:
        driver.kill()
        driver.wait()


def test_two_clusters_cannot_share_a_folder(state: Path) -> None:
    command = [sys.executable, "-m", "deploy.cluster", "--state", str(state), "run", "true"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"a cluster runs in {state} already" in result.stderr
