"""Resolve requirements.lock from pyproject.toml for Python 3.11 to 3.13: no addresses inside."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADER = "# Locked by `make lock` for Python 3.11 to 3.13; installed without resolving.\n"


def main() -> int:
    """Write the lock file; returns the exit status."""
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--extra", "dev"),
        *("--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate"),
        *("--no-emit-index-url", "--no-header", "--quiet"),
    ]
    result = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    if result.returncode == 0:
        (ROOT / "requirements.lock").write_text(HEADER + result.stdout)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
