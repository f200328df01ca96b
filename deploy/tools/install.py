"""Create the virtual environment from requirements.lock: versions and hashes, no resolving.

Needs Python 3.11 to 3.13 and nothing else. The lock file names `uv`, which is installed first and
then installs the rest in parallel; where it has no build for the platform, pip does the work.
"""

import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
SUPPORTED = ((3, 11), (3, 13))


def main(target: Path) -> int:
    """Build `target`; returns the exit status."""
    if not SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        found = sysconfig.get_python_version()
        print(f"Python {found} is not supported: use 3.11, 3.12 or 3.13 (make PYTHON=python3.12).")
        return 2
    started = time.monotonic()
    num_packages = len(re.findall(r"^[a-z0-9].*==", LOCK.read_text(), re.MULTILINE | re.IGNORECASE))
    print(f"Installing {num_packages} locked packages into {target} (torch brings CUDA libraries,")
    print("about 5 GB: half a minute to three minutes on a usual line) ...", flush=True)
    venv.create(target, with_pip=True, clear=target.exists())
    python = target / "bin" / "python"
    for command in install_commands(python):
        status = subprocess.run(command, check=False).returncode
        if status != 0:
            print(f"Installation failed: `{' '.join(command)}` exited with {status}.")
            return status
    (target / ".installed").touch()
    print(f"Installed in {time.monotonic() - started:.0f} s.", flush=True)
    return 0


def install_commands(python: Path) -> list[list[str]]:
    """Return the commands that fill the environment, the project itself last.

    It is installed in place: packages come from the checkout and from its folder `kernels`
    (`dev-mode-dirs` in pyproject.toml).
    """
    locked = ["--no-deps", "--require-hashes", "-r", str(LOCK)]
    project = ["--no-deps", "--no-build-isolation", "-e", str(ROOT)]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not install_uv(pip):
        return [[*pip, *locked], [*pip, *project]]
    uv = [str(python), "-m", "uv", "pip", "install", "--python", str(python)]
    return [[*uv, *locked], [*uv, "--quiet", *project]]


def install_uv(pip: list[str]) -> bool:
    """Install the locked uv alone; False where the platform has no build of it."""
    entry = re.search(r"^uv==.*(?:\n    --hash.*)+", LOCK.read_text(), re.MULTILINE)
    if entry is None:
        return False
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as only_uv:
        only_uv.write(entry.group(0) + "\n")
        only_uv.flush()
        command = [*pip, "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", only_uv.name]
        return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
