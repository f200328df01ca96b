"""A namespace for each test, in the cluster that `make test-cluster` runs the tests in.

Outside of a cluster nothing here is collected: these tests have a target of their own. Releases of
the chart are installed once, while tests run that need none.
"""

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.kube import Kube
from tests.cluster.release import TRACES_PORT, Release, Values, trace_store
from tests.cluster.weights import fetched_values, weights_store

STATE = "CLUSTER_STATE"
ORDER = (
    "test_control_plane",
    "test_machine",
    "test_ending",
    "test_pods",
    "test_services",
    "test_secured",
    "test_platform",
    "test_platform_load",
    "test_sizing",
)
Installing = Future[Release]
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tests without a release first: releases are installed meanwhile."""
    if STATE in os.environ:
        places = {stem: place for place, stem in enumerate(ORDER)}
        items.sort(key=lambda item: places.get(item.path.stem, -1))


@pytest.fixture(scope="session")
def values() -> Values:
    """What the release has beside the laptop's preset.

    Its traces go to the store; prompts as short as utterances are worth a look-up, as they are in
    `understudy up`. Addresses leave the endpoints at once here, so that less time than the chart's
    is given to that: what it has to hide is the same, and it has to hide it sooner.
    """
    return {
        "serving": {"otlpEndpoint": f"http://traces:{TRACES_PORT}", "preStopS": 2},
        "attention": {"settings": {"kvstoreMinTokens": 16}},
    }


@pytest.fixture(scope="session", autouse=True)
def ahead(request: pytest.FixtureRequest, values: Values) -> Iterator[Mapping[str, Installing]]:
    """Install the releases that tests will ask for, in the order in which they will."""
    installs = {
        "secured": partial(
            install, "secured", {"tls": {"mode": "chart"}, **fetched_values()}, weights_store
        ),
        "release": partial(install, "platform", values, trace_store),
    }
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    worker = ThreadPoolExecutor(1)
    yield {name: worker.submit(one) for name, one in installs.items() if name in wanted}
    worker.shutdown(cancel_futures=True)


def install(namespace: str, values: Values, prepare: Callable[[Kube], None]) -> Release:
    """Install the laptop's preset into a namespace that enforces the restricted standard."""
    made = Release(Kube(namespace))
    made.kube.create_namespace()
    prepare(made.kube)
    made.change(values)
    return made


@pytest.fixture(scope="session")
def release(ahead: Mapping[str, Installing]) -> Release:
    """The laptop's preset; it ends with the cluster."""
    return ahead["release"].result()


@pytest.fixture(scope="module")
def secured(ahead: Mapping[str, Installing]) -> Iterator[Release]:
    """The laptop's preset with weights that its Job fetches, and TLS between services."""
    made = ahead["secured"].result()
    yield made
    made.remove()


@pytest.fixture(scope="session")
def api_key(release: Release) -> str:
    return release.api_key()
