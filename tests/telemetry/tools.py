"""Finds the binaries of Prometheus for tests; without them a test is skipped with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.telemetry.build_prometheus import find_tool


def tool(name: str) -> Path:
    """Return a binary, or skip the test that asks for it."""
    found = find_tool(name, os.environ)
    if found is None:
        pytest.skip(
            f"needs {name}: `python -m deploy.telemetry.build_prometheus` builds it with Go"
        )
    return found
