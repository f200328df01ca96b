"""Finds a suitable Helm, or builds the pinned one from its Go module.

The binary goes to a cache folder outside the checkout, so that a fresh clone finds it again.
Without Helm and Go it says so and succeeds: the chart's tests are then skipped by name. In CI that
is a failure, as is a build that breaks. Run it as `python deploy/tools/build_helm.py`.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final

VERSION: Final = "v3.19.5"
KUBERNETES: Final = ("1", "34")
OLDEST: Final = (3, 14)
MODULE: Final = "helm.sh/helm/v3"
BUILD_TIMEOUT_S: Final = 1800
NUM_ERROR_LINES: Final = 20
PACKAGES_PER_LINE: Final = 100

Report = Callable[[str], None]


class BuildError(Exception):
    """Go could not build Helm; the message ends with Go's last lines."""


def cached_helm(environ: Mapping[str, str]) -> Path:
    """Return where the pinned Helm lies once it is built."""
    cache = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "understudy" / "tools" / f"helm-{VERSION}" / "helm"


def find_helm(environ: Mapping[str, str]) -> Path | None:
    """Return a Helm of at least 3.14: the one on PATH, else the cached one, else None."""
    on_path = shutil.which("helm", path=environ.get("PATH"))
    candidates = ([Path(on_path)] if on_path else []) + [cached_helm(environ)]
    return next((helm for helm in candidates if helm.is_file() and is_suitable(helm)), None)


def is_suitable(helm: Path) -> bool:
    """Ask a Helm for its version and compare it with the oldest one the chart supports."""
    command = [str(helm), "version", "--template", "{{.Version}}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    match = re.match(r"v(\d+)\.(\d+)", answer.stdout)
    return match is not None and (int(match[1]), int(match[2])) >= OLDEST


def linker_flags() -> str:
    """Return the flags that tell Helm its own version and that of Kubernetes, as releases do.

    Without the latter a Helm built from source takes every cluster for Kubernetes 1.20 and refuses
    charts that ask for a newer one.
    """
    values = {f"{MODULE}/internal/version.version": VERSION}
    for package in ("pkg/chartutil", "pkg/lint/rules"):
        values[f"{MODULE}/{package}.k8sVersionMajor"] = KUBERNETES[0]
        values[f"{MODULE}/{package}.k8sVersionMinor"] = KUBERNETES[1]
    return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in values.items())])


def build_helm(go: str, target: Path, environ: Mapping[str, str], report: Report) -> None:
    """Build the pinned Helm into `target`; another process never sees a half-written file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [go, "install", "-v", "-p", "2", "-trimpath", "-ldflags", linker_flags()]
        with subprocess.Popen(
            [*command, f"{MODULE}/cmd/helm@{VERSION}"],
            cwd=scratch,
            env={**environ, "GOBIN": scratch, "CGO_ENABLED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            _follow(process, report)
        (Path(scratch) / "helm").replace(target)


def _follow(process: subprocess.Popen[str], report: Report) -> None:
    assert process.stderr is not None
    watchdog = threading.Timer(BUILD_TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        last_lines = _read_progress(process.stderr, report)
        status = process.wait()
    finally:
        watchdog.cancel()
        process.kill()
    if status < 0:
        raise BuildError(
            f"signal {-status} ended the build (limit {BUILD_TIMEOUT_S} s); run it again"
        )
    if status != 0:
        raise BuildError("\n".join([f"go install ended with status {status}:", *last_lines]))


def _read_progress(lines: IO[str], report: Report) -> deque[str]:
    """Report every so many compiled packages; `go install -v` names each on a line of its own."""
    started_s, num_packages = time.monotonic(), 0
    last_lines: deque[str] = deque(maxlen=NUM_ERROR_LINES)
    for line in lines:
        last_lines.append(line.rstrip())
        if line.startswith("go: "):
            continue
        num_packages += 1
        if num_packages % PACKAGES_PER_LINE == 0:
            elapsed_s = time.monotonic() - started_s
            report(f"helm {VERSION}: {num_packages} packages compiled, {elapsed_s:.0f} s")
    return last_lines


def main(environ: Mapping[str, str], report: Report) -> int:
    """Make sure of a Helm; return the exit status."""
    helm, is_ci = find_helm(environ), bool(environ.get("CI"))
    if helm is not None:
        report(f"helm: {helm}")
        return 0
    go = shutil.which("go", path=environ.get("PATH"))
    if go is None:
        report("helm: neither Helm 3.14 or newer nor Go is installed, so chart tests are skipped.")
        return int(is_ci)
    report(f"helm {VERSION}: building it with {go}, about four minutes, once per machine")
    try:
        build_helm(go, cached_helm(environ), environ, report)
    except (BuildError, OSError) as error:
        report(f"helm: not built, so chart tests are skipped. {error}")
        return int(is_ci)
    report(f"helm: {cached_helm(environ)}")
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(os.environ, _print))
