"""Finds the binaries of Prometheus for tests; without them a test is skipped with the reason.

In CI that is a failure where Go is at hand: `.ci/run` builds them there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from deploy.telemetry.build_prometheus import find_tool


def tool(name: str) -> Path:
    """Return a binary, or skip the test that asks for it; in CI with Go, fail it."""
    found = find_tool(name, os.environ)
    if found is not None:
        return found
    reason = f"needs {name}: `python -m deploy.telemetry.build_prometheus` builds it with Go"
    if os.environ.get("CI") and shutil.which("go"):
        pytest.fail(reason)
    pytest.skip(reason)
