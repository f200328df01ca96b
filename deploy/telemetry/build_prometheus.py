"""Finds Prometheus and promtool, or builds the pinned ones from their Go module, once per machine.

The binaries go to a cache folder outside the checkout, so that a fresh clone finds them again.
Their web page is left out: the API is all that tests ask. Run it as
`python -m deploy.telemetry.build_prometheus`; it takes about five minutes on two cores.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

MODULE: Final = "github.com/prometheus/prometheus"
VERSION: Final = "v0.315.0"
"""Prometheus 3.15.0; its Go module counts from 0."""
GO_VERSION: Final = "1.26.0"
REPLACEMENTS: Final = ("cloud.google.com/go => cloud.google.com/go v0.123.0",)
"""Of the module's own go.mod; Go ignores those of a dependency."""
TAGS: Final = "remove_all_sd"
"""Targets come from the configuration alone; what finds them in clouds would double the build."""
TOOLS: Final = ("prometheus", "promtool")
BUILD_TIMEOUT_S: Final = 3600

Report = Callable[[str], None]


class BuildError(Exception):
    """Go could not build a tool; Go's own lines stand above on standard error."""


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return where the pinned binaries lie once they are built."""
    cache = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "understudy" / "tools" / f"prometheus-{VERSION}"


def find_tool(name: str, environ: Mapping[str, str]) -> Path | None:
    """Return the pinned binary, else one on PATH, else None."""
    pinned = cache_folder(environ) / name
    if pinned.is_file():
        return pinned
    found = shutil.which(name, path=environ.get("PATH"))
    return Path(found) if found else None


def module_files() -> dict[str, str]:
    """Return the Go module that requires the tools: its go.mod and one Go file."""
    go_mod = ["module tools/prometheus", f"go {GO_VERSION}", f"require {MODULE} {VERSION}"]
    go_mod += [f"replace {line}" for line in REPLACEMENTS]
    imports = [f'import _ "{MODULE}/cmd/{name}"' for name in TOOLS]
    source = ["//go:build tools", "package tools", *imports]
    return {"go.mod": "\n".join(go_mod) + "\n", "tools.go": "\n".join(source) + "\n"}


def build(go: str, environ: Mapping[str, str], report: Report) -> None:
    """Build both tools; another process never sees a half-written binary."""
    target = cache_folder(environ)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        for name, text in module_files().items():
            (Path(scratch) / name).write_text(text)
        _go([go, "mod", "tidy"], scratch, environ)
        for name in TOOLS:
            report(f"{name} {VERSION}: building it")
            flags = ["-trimpath", "-buildvcs=false", "-tags", TAGS, "-ldflags", "-s -w"]
            _go([go, "build", *flags, "-o", name, f"{MODULE}/cmd/{name}"], scratch, environ)
            (Path(scratch) / name).replace(target / name)


def _go(command: list[str], folder: str, environ: Mapping[str, str]) -> None:
    settings = {**environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    try:
        subprocess.run(command, cwd=folder, env=settings, check=True, timeout=BUILD_TIMEOUT_S)
    except subprocess.SubprocessError as error:
        raise BuildError(f"{' '.join(command)}: {error}") from error


def main(environ: Mapping[str, str], report: Report) -> int:
    """Make sure of both tools; return the exit status."""
    missing = [name for name in TOOLS if find_tool(name, environ) is None]
    if not missing:
        report(f"prometheus: {find_tool('prometheus', environ)}")
        return 0
    go = shutil.which("go", path=environ.get("PATH"))
    if go is None:
        report(f"{', '.join(missing)}: Go {GO_VERSION} or newer is needed to build them.")
        return 1
    try:
        build(go, environ, report)
    except (BuildError, OSError) as error:
        report(f"prometheus: not built. {error}")
        return 1
    report(f"prometheus: {cache_folder(environ)}")
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(os.environ, _print))
