"""One Triton server process: started on loopback, and ended with everything it leaves behind.

A python backend that is killed leaves shared memory behind; regions carry the pid of whoever
started the server, so that only our own are ever removed.
"""

import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from understudy.errors import FailedPrecondition
from understudy.local.ports import LOOPBACK, free_port
from understudy.local.processes import Child, last_lines
from understudy.local.triton.installation import Installation

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # where the kernel has it
REGION_PREFIX: Final = "understudy_triton_"
EXIT_TIMEOUT_S: Final = 5
READY_TIMEOUT_S: Final = 240.0
PROBE_TIMEOUT_S: Final = 1.0
POLL_S: Final = 0.1
_SHOWN_LINES: Final = 12


class TritonServer:
    """A running server; `stop` or `kill` it."""

    def __init__(
        self,
        installation: Installation,
        repository: Path,
        log: Path,
        *,
        models: Sequence[str] = (),
        grpc_port: int = 0,
        arguments: Sequence[str] = (),
    ) -> None:
        """Start serving `models` of `repository`; others may be loaded later, by call."""
        self.repository = repository
        self.http_port, self.metrics_port = free_port(), free_port()
        self.grpc_port = grpc_port or free_port()
        self._region_prefix = f"{REGION_PREFIX}{os.getpid()}_{self.grpc_port}_"
        command = (
            *(str(installation.server), "--model-repository", str(repository)),
            *("--backend-directory", str(installation.backends)),
            *("--model-control-mode", "explicit", "--disable-auto-complete-config"),
            *("--http-address", LOOPBACK, "--http-port", str(self.http_port)),
            *("--grpc-address", LOOPBACK, "--grpc-port", str(self.grpc_port)),
            *("--metrics-address", LOOPBACK, "--metrics-port", str(self.metrics_port)),
            *("--allow-gpu-metrics=false", "--exit-timeout-secs", str(EXIT_TIMEOUT_S)),
            *("--backend-config", f"python,shm-region-prefix-name={self._region_prefix}"),
            *(f"--load-model={model}" for model in models),
            *arguments,
        )
        self._child = Child(command, server_environment(), log)

    @property
    def grpc_address(self) -> str:
        """Where the gRPC API listens."""
        return f"{LOOPBACK}:{self.grpc_port}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._child.exit_code() is None

    def is_ready(self) -> bool:
        """Whether the server and the models it was started with report ready."""
        url = f"http://{LOOPBACK}:{self.http_port}/v2/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return once it is ready. Raises FailedPrecondition with its last words otherwise."""
        ends_at = time.monotonic() + timeout_s
        while not self.is_ready():
            if not self.is_running or time.monotonic() > ends_at:
                self.kill()
                said = "".join(f"\n    {x}" for x in last_lines(self._child.log, _SHOWN_LINES))
                raise FailedPrecondition(f"Triton did not become ready. Its last words:{said}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Let it finish what runs, at most five seconds, and end it."""
        self._child.terminate()
        ends_at = time.monotonic() + EXIT_TIMEOUT_S + 2
        while self.is_running and time.monotonic() < ends_at:
            time.sleep(POLL_S)
        self.kill()

    def kill(self) -> None:
        """End it and its backends at once, and remove the shared memory that they leave."""
        self._child.kill()
        for region in SHARED_MEMORY.glob(f"{self._region_prefix}*"):
            region.unlink(missing_ok=True)


def server_environment() -> Mapping[str, str]:
    """Return the server's whole environment: the stub takes the first python3 on PATH."""
    path = os.pathsep.join((str(Path(sys.executable).parent), "/usr/bin", "/bin"))
    return {"PATH": path, "OMP_NUM_THREADS": "1"}


def remove_leftovers() -> None:
    """Remove the shared memory of servers whose starter is gone."""
    for region in SHARED_MEMORY.glob(f"{REGION_PREFIX}*"):
        pid = region.name.removeprefix(REGION_PREFIX).partition("_")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with suppress(OSError):
                region.unlink()
