"""`understudy up` as a user meets it: one sentence for what goes wrong, nothing left behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from understudy.local.models import find_checkout
from understudy.local.ports import free_port

ROOT = find_checkout()
TIMEOUT_S = 150.0

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc to find orphans"),
    pytest.mark.timeout(300),
]


def living(run_dir: Path) -> set[int]:
    """Processes whose environment or command line mentions the run directory."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if entry.name.isdigit() and str(run_dir).encode() in told and state not in "ZX":
            found.add(int(entry.name))
    return found - {os.getpid()}


def wait_until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < ends_at, "the condition did not come true"
        time.sleep(0.05)


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    wait_until(lambda: not living(tmp_path / "run"))


def command(run_dir: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    ours = {
        "UNDERSTUDY_LOCAL_RUN_DIR": str(run_dir),
        "UNDERSTUDY_LOCAL_HTTP_PORT": "0",
        "UNDERSTUDY_LOCAL_GRPC_PORT": "0",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "400",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "understudy.cli", *arguments],
        env={**os.environ, **ours, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )


def hear_ctrl_c() -> None:
    """Undo what a shell does to background jobs: they are started deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    with process:
        _, complaint = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, complaint


def test_a_busy_port_is_refused_with_the_remedy(run_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        code, complaint = finish(command(run_dir, "up", UNDERSTUDY_LOCAL_GRPC_PORT=port))
    assert code == 1
    assert f"Port {port}, meant for the router, cannot be taken" in complaint
    assert "UNDERSTUDY_LOCAL_GRPC_PORT" in complaint
    assert "Traceback" not in complaint


def test_a_redis_that_is_gone_is_refused_with_the_remedy(run_dir: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    code, complaint = finish(command(run_dir, "up", UNDERSTUDY_LOCAL_CONTROL_REDIS=url))
    assert code == 1
    assert "No Redis answers" in complaint
    assert "UNDERSTUDY_LOCAL_CONTROL_REDIS" in complaint


def test_a_missing_model_is_refused_with_the_remedy(run_dir: Path) -> None:
    code, complaint = finish(command(run_dir, "up", UNDERSTUDY_LOCAL_SLM="/nowhere/slm"))
    assert code == 1
    assert "The weights of the SLM are not at /nowhere/slm" in complaint
    assert "UNDERSTUDY_LOCAL_SLM" in complaint


def test_a_worker_that_cannot_load_its_model_ends_everything(run_dir: Path, tmp_path: Path) -> None:
    weightless = tmp_path / "weightless"
    weightless.mkdir()
    shutil.copy(ROOT / "models" / "slm-snips" / "tokenizer.json", weightless)
    code, complaint = finish(command(run_dir, "up", UNDERSTUDY_LOCAL_LLM=str(weightless)))
    assert code == 1
    assert "before it was ready; everything was stopped" in complaint
    assert "weightless/config.json" in complaint
    assert str(run_dir / "logs") in complaint
    assert "Traceback" not in complaint
    assert not living(run_dir)


@pytest.mark.parametrize("arguments", [("up",), ("demo",)])
def test_ctrl_c_ends_every_child(run_dir: Path, arguments: tuple[str, ...]) -> None:
    process = command(run_dir, *arguments)
    place = run_dir if arguments == ("up",) else run_dir / "demo"
    wait_until(lambda: (place / "ready" / "kvstore.json").exists())
    assert len(living(run_dir)) > 5
    os.killpg(process.pid, signal.SIGINT)
    code, complaint = finish(process)
    assert code == 130
    assert "Interrupted." in complaint
    assert not living(run_dir)


def test_killing_a_demo_leaves_no_orphan(run_dir: Path) -> None:
    process = command(run_dir, "demo")
    wait_until(lambda: (run_dir / "demo" / "ready" / "kvstore.json").exists())
    os.killpg(process.pid, signal.SIGKILL)
    code, _ = finish(process)
    assert code == -signal.SIGKILL
    wait_until(lambda: not living(run_dir))
