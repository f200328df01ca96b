"""What a worker takes in memory beyond a process that only imported torch."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.contestants.protocol import anonymous_bytes
from benchmarks.measure import ROOT
from understudy.model.locate import locate_model

MIB: Final = 1 << 20
KV_MIB: Final = 64
ALLOWED: Final = 1.3
START_TIMEOUT_S: Final = 300.0
BARE: Final = "import torch, sys; print(flush=True); sys.stdin.read()"


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB of memory that no file backs."""

    worker_mib: float
    bare_mib: float
    """Of a process that imported torch."""
    file_mib: float
    kv_mib: float

    @property
    def above_mib(self) -> float:
        """What the worker adds."""
        return self.worker_mib - self.bare_mib

    @property
    def allowed_mib(self) -> float:
        """1.3 times the file, and the KV."""
        return ALLOWED * self.file_mib + self.kv_mib


def measure_memory() -> Memory:
    """Start an attention worker over SmolLM2 as the platform does, and look at it."""
    file_bytes = locate_model("smollm2").stat().st_size
    return Memory(_worker_bytes() / MIB, _bare_bytes() / MIB, file_bytes / MIB, KV_MIB)


def _bare_bytes() -> int:
    with subprocess.Popen(  # noqa: S603 - our own Python
        [sys.executable, "-c", BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None, "it was opened with a pipe"
        process.stdout.readline()
        return anonymous_bytes(process.pid)


def _worker_bytes() -> int:
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        environ = {
            **os.environ,
            "UNDERSTUDY_SERVING_LISTEN": "127.0.0.1:0",
            "UNDERSTUDY_SERVING_METRICS_LISTEN": "127.0.0.1:0",
            "UNDERSTUDY_SERVING_READY_FILE": str(ready),
            "UNDERSTUDY_ATTENTION_MODEL": "smollm2",
            "UNDERSTUDY_ATTENTION_MODEL_NAME": "smollm2",
            "UNDERSTUDY_ATTENTION_KV_MEMORY_MIB": str(KV_MIB),
        }
        command = [sys.executable, "-m", "services.attention"]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)  # noqa: S603
        try:
            ends_at = time.monotonic() + START_TIMEOUT_S
            while not ready.exists() and process.poll() is None and time.monotonic() < ends_at:
                time.sleep(0.1)
            return anonymous_bytes(process.pid)
        finally:
            process.terminate()
            process.wait()
