"""A namespace for each test, in the cluster that `make test-cluster` runs the tests in.

Outside of a cluster nothing here is collected: these tests have a target of their own.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kube import Kube

STATE = "CLUSTER_STATE"
collect_ignore_glob = [] if STATE in os.environ else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster: needs the cluster of `make test-cluster`")


@pytest.fixture(scope="session")
def state() -> Path:
    """Return the folder of the cluster."""
    return Path(os.environ[STATE])


@pytest.fixture
def kube() -> Iterator[Kube]:
    """Return a namespace that enforces the restricted standard, gone after the test."""
    made = Kube(f"test-{uuid.uuid4().hex[:8]}")
    made.create_namespace()
    yield made
    made.delete_namespace()
