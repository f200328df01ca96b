"""Finds Prometheus and promtool, or builds the pinned ones from their Go module, once per machine.

The binaries go where the test cluster keeps its own, outside the checkout, so that a fresh clone
finds them again. Their web page is left out: the API is all that tests ask. Run it as
`python -m deploy.telemetry.build_prometheus [--within SECONDS]`; it takes about five minutes on two
cores.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from deploy.cluster.building import BUILD_TIMEOUT_S, BuildError, ensure_built
from deploy.cluster.tools import GO_MODULE_VERSION, Tool, binaries_folder

MODULE: Final = "github.com/prometheus/prometheus"
TOOLS: Final = ("prometheus", "promtool")
PROMETHEUS: Final = Tool(
    name="prometheus",
    module=MODULE,
    version="v0.315.0",  # Prometheus 3.15.0; its Go module counts from 0
    commands={name: f"{MODULE}/cmd/{name}" for name in TOOLS},
    linker_values={},
    # Targets come from the configuration alone; what finds them in clouds would double the build.
    tags=("remove_all_sd",),
    replacements=("cloud.google.com/go => cloud.google.com/go v0.123.0",),
)

Report = Callable[[str], None]


def find_tool(name: str, environ: Mapping[str, str]) -> Path | None:
    """Return the pinned binary, else one on PATH, else None."""
    pinned = binaries_folder(PROMETHEUS, environ) / name
    if pinned.is_file():
        return pinned
    found = shutil.which(name, path=environ.get("PATH"))
    return Path(found) if found else None


def main(environ: Mapping[str, str], report: Report, within_s: float = BUILD_TIMEOUT_S) -> int:
    """Make sure of both tools; return the exit status."""
    missing = [name for name in TOOLS if find_tool(name, environ) is None]
    if not missing:
        report(f"prometheus: {find_tool('prometheus', environ)}")
        return 0
    if shutil.which("go", path=environ.get("PATH")) is None:
        report(f"{', '.join(missing)}: Go {GO_MODULE_VERSION} or newer is needed to build them.")
        return 1
    try:
        [folder] = ensure_built([PROMETHEUS], environ, report, within_s)
    except (BuildError, OSError) as error:
        report(f"prometheus: not built. {error}")
        return 1
    report(f"prometheus: {folder}")
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--within", type=float, default=BUILD_TIMEOUT_S, metavar="SECONDS")
    raise SystemExit(main(os.environ, _print, parser.parse_args().within))
