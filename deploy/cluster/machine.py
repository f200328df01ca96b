"""Says whether this machine can run a cluster and the tests in it, before anything is built."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from deploy.cluster.layout import PYTHON, ROOT
from deploy.cluster.running import UNSHARE, RunError, check_namespaces
from deploy.cluster.trial import REFUSED, TIMEOUT_S
from deploy.tools.build_helm import find_helm

NEEDED_BYTES: Final = 7 << 30
"""Memory of the tests at their widest: control plane, four attention and two expert workers."""
BESIDE_BYTES: Final = 9 << 30
"""Memory of the tests in two processes, with a second release beside that one."""
_GIB: Final = 1 << 30
_AVAILABLE: Final = Path("/proc/meminfo")
_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def check_machine(environ: Mapping[str, str]) -> None:
    """Raise RunError with one sentence that says what this machine lacks."""
    check_namespaces()
    if find_helm(environ) is None:
        raise RunError(
            "Helm 3.14 or newer is missing: `make setup` builds it where Go is installed"
        )
    available = available_bytes()
    if available < NEEDED_BYTES:
        raise RunError(
            f"{available / _GIB:.1f} GiB of memory are available; the tests take "
            f"{NEEDED_BYTES / _GIB:.0f} GiB"
        )
    with tempfile.TemporaryDirectory() as folder:
        _try_out(Path(folder))


def available_bytes() -> int:
    """Return the memory that programs may still take here."""
    return memory_bytes(_AVAILABLE, _LIMITS)


def memory_bytes(available: Path, limits: tuple[Path, ...]) -> int:
    """Return the memory that programs may still take: of the machine, or of this container."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", available.read_text(), re.MULTILINE)
    amounts = [int(found[1]) << 10] if found else []
    for limit in limits:
        text = limit.read_text().strip() if limit.exists() else ""
        if text.isdigit():
            amounts.append(int(text))
    return min(amounts, default=0)


def _try_out(folder: Path) -> None:
    command = [*UNSHARE, PYTHON, "-m", "deploy.cluster.trial", str(folder)]
    try:
        trial = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"a pod did not start within {2 * TIMEOUT_S:g} s") from error
    if trial.returncode == REFUSED:
        details = trial.stderr.strip().splitlines()[:1]
        raise RunError(": ".join([trial.stdout.strip(), *details]))
    trial.check_returncode()
