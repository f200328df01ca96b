"""Finds a suitable Helm, or builds the pinned one from its Go module.

The binary goes to a cache folder outside the checkout, so that a fresh clone finds it again.
Without Helm and Go it says so and succeeds: the chart's tests are then skipped by name. In CI that
is a failure, as is a build that breaks. Run it as `python -m deploy.tools.build_helm`.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from deploy.cluster.building import BuildError, build_tool
from deploy.cluster.tools import Tool

VERSION: Final = "v3.19.5"
KUBERNETES: Final = ("1", "34")
OLDEST: Final = (3, 14)
MODULE: Final = "helm.sh/helm/v3"
BUILD_TIMEOUT_S: Final = 1800

Report = Callable[[str], None]


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


def pinned_helm() -> Tool:
    """Return the pinned Helm, which is told its own version and that of Kubernetes.

    Without the latter a Helm built from source takes every cluster for Kubernetes 1.20 and refuses
    charts that ask for a newer one.
    """
    values = {f"{MODULE}/internal/version.version": VERSION}
    for package in ("pkg/chartutil", "pkg/lint/rules"):
        values[f"{MODULE}/{package}.k8sVersionMajor"] = KUBERNETES[0]
        values[f"{MODULE}/{package}.k8sVersionMinor"] = KUBERNETES[1]
    return Tool("helm", MODULE, VERSION, {"helm": f"{MODULE}/cmd/helm"}, values)


def main(environ: Mapping[str, str], report: Report) -> int:
    """Make sure of a Helm; return the exit status."""
    helm, is_ci = find_helm(environ), bool(environ.get("CI"))
    if helm is not None:
        report(f"helm: {helm}")
        return 0
    if shutil.which("go", path=environ.get("PATH")) is None:
        report("helm: neither Helm 3.14 or newer nor Go is installed, so chart tests are skipped.")
        return int(is_ci)
    try:
        build_tool(pinned_helm(), cached_helm(environ).parent, environ, report, BUILD_TIMEOUT_S)
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
