"""Starts a cluster inside namespaces of its own, and finds one that runs."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final, NoReturn

from deploy.cluster.layout import PYTHON, ROOT, Layout
from deploy.tools.build_helm import find_helm

LOCK: Final = "cluster.lock"
STOP_TIMEOUT_S: Final = 20
_POLL_S: Final = 0.2
UNSHARE: Final = (
    "unshare",
    "--user",
    "--map-root-user",
    "--net",
    "--mount",
    "--ipc",
    "--uts",
    "--pid",
    "--fork",
    "--mount-proc",
    "--kill-child=SIGKILL",
    "--",
)


class RunError(Exception):
    """The cluster cannot be started, or none runs."""


def inside_command(state: Path, command: Sequence[str]) -> list[str]:
    """Return the command that becomes the cluster."""
    inside = [PYTHON, "-m", "deploy.cluster.inside", str(state)]
    return [*UNSHARE, *inside, *command]


def inside_environment(folders: Sequence[Path], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the cluster: the tools come first on PATH."""
    helm = find_helm(environ)
    tools = [*map(str, folders), *([str(helm.parent)] if helm else [])]
    path = os.pathsep.join([*tools, environ.get("PATH", os.defpath)])
    paths = os.pathsep.join(filter(None, [str(ROOT), environ.get("PYTHONPATH", "")]))
    return {**environ, "PATH": path, "PYTHONPATH": paths}


def check_namespaces() -> None:
    """Refuse where this user cannot make namespaces, and say what would help."""
    for program in ("unshare", "nsenter", "setpriv", "ip"):
        if shutil.which(program) is None:
            raise RunError(f"{program} is missing: install util-linux and iproute2")
    trial = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    if trial.returncode:
        raise RunError(
            "this user cannot make the namespaces that the cluster needs: "
            f"{trial.stderr.strip()}. It takes user namespaces (user.max_user_namespaces above 0, "
            "and no rule of a container engine or of AppArmor against them)"
        )


def claim_state(state: Path) -> int:
    """Empty the folder and lock it for as long as the returned file is open."""
    if state.exists() and any(state.iterdir()) and not (state / LOCK).exists():
        raise RunError(f"{state} holds something else; name an empty folder")
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o700)
    lock = os.open(state / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(f"a cluster runs in {state} already") from error
    for entry in state.iterdir():
        if entry.name != LOCK:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return lock


def run_cluster(state: Path, command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command in a new cluster and return its status; all of it ends with this process."""
    asked_s: list[float] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked_s.append(time.monotonic()))
    is_told = False
    with _started_cluster(state, command, environ, None) as process:
        while process.poll() is None:
            if asked_s and not is_told:
                is_told = _tell_to_end(process.pid)
            if asked_s and time.monotonic() > asked_s[0] + STOP_TIMEOUT_S:
                process.kill()
            time.sleep(_POLL_S)
        return process.returncode


def start_cluster(state: Path, environ: Mapping[str, str]) -> int:
    """Start a cluster that stays; return its process once it is ready."""
    state.parent.mkdir(parents=True, exist_ok=True)
    with (state.parent / f"{state.name}.log").open("wb") as log:
        process = _started_cluster(state, [], environ, log)
    while not Layout(state).ready.exists():
        if process.poll() is not None:
            raise RunError(Path(log.name).read_text(errors="replace"))
        time.sleep(_POLL_S)
    process.returncode = 0  # It is left running: Popen would warn of a child that it still has.
    return process.pid


def _started_cluster(
    state: Path, command: Sequence[str], environ: Mapping[str, str], log: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    check_namespaces()
    lock, stays = claim_state(state), log is not None
    bond = [] if stays else ["setpriv", "--pdeathsig", "KILL", "--"]
    try:
        process = subprocess.Popen(
            [*bond, *inside_command(state, command)],
            env=dict(environ),
            stdin=subprocess.DEVNULL if stays else None,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            start_new_session=stays,
        )
    finally:
        os.close(lock)
    (state / "pid").write_text(f"{process.pid} {_started(process.pid)}")
    return process


def _tell_to_end(pid: int) -> bool:
    """Tell the first process inside, once it listens; before that it would ignore the signal."""
    try:
        first = _first_inside(pid)
        caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{first}/status").read_text(), re.M)
        if caught is None or not int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
            return False
        os.kill(first, signal.SIGTERM)
    except (RunError, ProcessLookupError, FileNotFoundError):
        return False
    return True


def find_cluster(state: Path) -> int:
    """Return the process of the cluster that runs there; never one that only has its number."""
    record = state / "pid"
    if record.exists():
        pid, started = record.read_text().split()
        if _started(int(pid)) == started:
            return int(pid)
    raise RunError(f"no cluster runs in {state}")


def stop_cluster(state: Path) -> None:
    """End the cluster that runs there and everything in it."""
    pid = find_cluster(state)
    os.kill(_first_inside(pid), signal.SIGTERM)
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    while _started(pid):
        if time.monotonic() > deadline_s:
            os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def enter_cluster(state: Path, command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Turn this process into a command inside the cluster that runs there."""
    target = str(_first_inside(find_cluster(state)))
    layout = Layout(state)
    variables = {**environ, "KUBECONFIG": str(layout.kubeconfig), "CLUSTER_STATE": str(state)}
    kinds = ["--user", "--net", "--mount", "--ipc", "--uts", "--pid", "--preserve-credentials"]
    enter = ["nsenter", "--target", target, *kinds, f"--wd={Path.cwd()}", "--", *command]
    os.execvpe(enter[0], enter, variables)  # noqa: S606


def _first_inside(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if not children:
        raise RunError("the cluster is ending")
    return int(children[0])


def _started(pid: int) -> str:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except FileNotFoundError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def report(line: str) -> None:
    """Print progress where it does not mix with a command's output."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
