"""Unpacks the Triton Inference Server from its wheel into the cache, outside the checkout.

The wheel is pinned with its hash in triton.txt. Where it cannot be had in time, or the server
cannot run, the tool says why; tests that need it are then skipped by name. Run it with the virtual
environment's Python: `.venv/bin/python deploy/tools/install_triton.py`, or `make triton`.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from understudy.local.triton.installation import (
    WHEEL,
    Installation,
    cached_triton,
    find_triton,
)

REQUIREMENTS: Final = Path(__file__).with_name("triton.txt")
OLDEST_GLIBC: Final = (2, 35)
PIP_TIMEOUT_S: Final = 180
LDD_TIMEOUT_S: Final = 60
SHOWN_CHARS: Final = 1500

Report = Callable[[str], None]


class InstallError(Exception):
    """The server cannot be unpacked or cannot run here."""


def main(environ: Mapping[str, str], report: Report) -> int:
    """Make sure of a server; returns the exit status."""
    found = find_triton(environ)
    if found is not None:
        report(f"triton: {found.server}")
        return 0
    try:
        check_platform()
        install(cached_triton(environ), report)
    except (InstallError, OSError, subprocess.SubprocessError) as error:
        report(f"triton: the server is not installed, and what needs it cannot run. {error}")
        return 1
    report(f"triton: {cached_triton(environ).server}")
    return 0


def check_platform() -> None:
    """Raise InstallError where the wheel has no binary for."""
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise InstallError(f"The wheel has binaries for Linux x86_64, this is {system} {machine}.")
    library, version = platform.libc_ver()
    found = tuple(int(part) for part in version.split(".") if part.isdigit())
    if library != "glibc" or found < OLDEST_GLIBC:
        raise InstallError(
            f"The server needs glibc 2.35 or newer, this is {library or 'no glibc'} {version}."
        )


def install(target: Installation, report: Report) -> None:
    """Unpack the wheel, choose the stub of this Python, and see that its libraries are found."""
    target.root.parent.mkdir(parents=True, exist_ok=True)
    report(f"triton: unpacking {WHEEL} (146 MB, once) into {target.root} ...")
    with tempfile.TemporaryDirectory(dir=target.root.parent) as scratch:
        draft = Installation(Path(scratch) / "triton")
        download(draft.root)
        prepare(draft)
        for binary in (draft.server, draft.stub):
            check_libraries(binary)
        shutil.rmtree(target.root, ignore_errors=True)
        draft.root.rename(target.root)


def download(folder: Path) -> None:
    """Unpack the pinned wheel into a folder. Raises InstallError with pip's words."""
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--require-hashes", "--target", str(folder)),
        *("-r", str(REQUIREMENTS)),
    ]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=PIP_TIMEOUT_S
    )
    if done.returncode:
        raise InstallError(f"pip could not fetch the wheel: {done.stderr.strip()[-SHOWN_CHARS:]}")


def prepare(draft: Installation) -> None:
    """Put the stub of this Python in place and libpython where it looks for it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = draft.stubs / version / draft.stub.name
    if not stub.is_file():
        known = ", ".join(sorted(entry.name for entry in draft.stubs.iterdir()))
        raise InstallError(f"The wheel has no stub for Python {version}; it has {known}.")
    shutil.copyfile(stub, draft.stub)
    for binary in (draft.server, draft.stub):
        binary.chmod(0o755)
    library = sysconfig.get_config_var("INSTSONAME")
    folder = Path(sysconfig.get_config_var("LIBDIR") or "")
    if library and (folder / library).is_file():
        (draft.libraries / library).symlink_to(folder / library)


def check_libraries(binary: Path) -> None:
    """Raise InstallError naming libraries that are missing; a stub without them hangs a load."""
    done = subprocess.run(
        ["ldd", str(binary)], check=False, capture_output=True, text=True, timeout=LDD_TIMEOUT_S
    )
    missing = [line.split()[0] for line in done.stdout.splitlines() if "not found" in line]
    if done.returncode or missing:
        what = ", ".join(missing) or done.stderr.strip()[-SHOWN_CHARS:]
        raise InstallError(
            f"{binary.name} lacks {what}; a Python built with a shared libpython has the last one"
            " (`--enable-shared`)."
        )


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(os.environ, _print))
