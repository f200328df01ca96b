"""A namespace for each test, in the cluster that `make test-cluster` runs the tests in.

Outside of a cluster nothing here is collected: these tests have a target of their own. The release
of the chart is installed once, for all tests that ask it.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kube import Kube
from tests.cluster.release import TRACES_PORT, Release, Values, trace_store

STATE = "CLUSTER_STATE"
collect_ignore_glob = [] if STATE in os.environ else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster: needs the cluster of `make test-cluster`")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured on their way; nothing is asserted of it."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {name} {value}")


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


@pytest.fixture(scope="session")
def values() -> Values:
    """What the release has beside the laptop's preset.

    Its traces go to the store; prompts as short as utterances are worth a look-up, as they are in
    `understudy up`.
    """
    return {
        "serving": {"otlpEndpoint": f"http://traces:{TRACES_PORT}"},
        "attention": {"settings": {"kvstoreMinTokens": 16}},
    }


@pytest.fixture(scope="session")
def release(values: Values) -> Iterator[Release]:
    """Install the laptop's preset into a namespace that enforces the restricted standard."""
    made = Release(Kube("platform"))
    made.kube.create_namespace()
    trace_store(made.kube)
    made.change(values)
    yield made
    made.uninstall()
    made.kube.delete_namespace()


@pytest.fixture(scope="session")
def api_key(release: Release) -> str:
    return release.api_key()
