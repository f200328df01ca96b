"""Run every test under branch coverage, print the report and fail below the floor.

Two workers share the tests: much of a test's time is waiting for processes to start. Extra
arguments go to pytest: `python deploy/tools/run_tests.py -k router`, `-n0` for one worker.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTEST = ("-m", "pytest", "--durations=15", "-n2", "--dist=loadfile", "--no-loadscope-reorder")


def main(extra: list[str]) -> int:
    """Run pytest and, for a full run, the coverage floor; returns the exit status."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    # Once, and before the clock of any test runs.
    subprocess.run([sys.executable, "-m", "understudy_kernels.build"], cwd=ROOT, check=False)
    coverage = [sys.executable, "-m", "coverage"]
    run(["erase"], coverage, environ)
    status = run(["run", *PYTEST, *extra], coverage, environ)
    run(["combine", "--quiet"], coverage, environ)
    floor = [] if not extra else ["--fail-under=0"]
    report = run(["report", *floor], coverage, environ)
    return status or report


def run(arguments: list[str], coverage: list[str], environ: dict[str, str]) -> int:
    """Run one coverage command in the checkout."""
    return subprocess.run([*coverage, *arguments], cwd=ROOT, env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
