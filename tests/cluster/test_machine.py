"""A machine that cannot run a cluster is found out, with the reason, before anything is built."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cluster.layout import ROOT
from deploy.cluster.running import UNSHARE
from deploy.cluster.trial import REFUSED

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def tried(folder: Path, before: str = "true") -> subprocess.CompletedProcess[str]:
    """Try out the machine after a shell command that takes something away from it."""
    trial = f"{sys.executable} -m deploy.cluster.trial {folder}"
    command = [*UNSHARE, "sh", "-c", f"{before} && exec {trial}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_where_clusters_run_nothing_is_refused(tmp_path: Path) -> None:
    done = tried(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("kind", "refused"), [("net", "no pod can be started"), ("user", "no program can be run")]
)
def test_namespaces_that_are_not_given_are_named(tmp_path: Path, kind: str, refused: str) -> None:
    done = tried(tmp_path, f"echo 0 > /proc/sys/user/max_{kind}_namespaces")
    assert done.returncode == REFUSED
    assert done.stdout.startswith(refused)
    assert "No space left on device" in done.stdout
