"""A namespace for each test, in the cluster that `make test-cluster` runs the tests in.

Outside of a cluster nothing here is collected: these tests have a target of their own. They run in
two processes at once, since most of them wait most of the time: one has the modules that change a
release under load, the other one all the rest.
"""

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.cluster.machine import BESIDE_BYTES, available_bytes
from tests.cluster.kube import Kube
from tests.cluster.release import TRACES_PORT, Release, Values, install, trace_store
from tests.cluster.weights import fetched_values, weights_store

STATE = "CLUSTER_STATE"
ORDER = (
    "test_control_plane",
    "test_machine",
    "test_ending",
    "test_pods",
    "test_services",
    "test_secured",
    "test_sizing",
    "test_platform",
    "test_platform_load",
)
collect_ignore_glob = [] if STATE in os.environ else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster: needs the cluster of `make test-cluster`")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Take one process where there is no memory for two."""
    return 2 if available_bytes() >= BESIDE_BYTES else 1


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
def kube(installing: Future[Release]) -> Iterator[Kube]:
    """Return a namespace that enforces the restricted standard, gone after the test.

    A release is installed meanwhile, for tests that come later.
    """
    made = Kube(f"test-{uuid.uuid4().hex[:8]}")
    made.create_namespace()
    yield made
    made.delete_namespace()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tests without a release first: one is installed meanwhile."""
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


@pytest.fixture(scope="session")
def installing(request: pytest.FixtureRequest) -> Iterator[Future[Release]]:
    """Install, while tests run that need none, a release with fetched weights and TLS."""
    secured: Values = {"tls": {"mode": "chart"}, **fetched_values()}
    items = request.session.items
    is_wanted = any("secured" in getattr(item, "fixturenames", ()) for item in items)
    if not is_wanted:
        yield Future()
        return
    with ThreadPoolExecutor(1) as worker:
        yield worker.submit(install, Release(Kube("secured"), "secured"), secured, weights_store)


@pytest.fixture(scope="session")
def release(values: Values) -> Release:
    """The laptop's preset; it ends with the cluster."""
    return install(Release(Kube("platform")), values, trace_store)


@pytest.fixture(scope="module")
def secured(installing: Future[Release]) -> Iterator[Release]:
    """The laptop's preset with weights that its Job fetches, and TLS between services."""
    made = installing.result()
    yield made
    made.remove()


@pytest.fixture(scope="session")
def api_key(release: Release) -> str:
    return release.api_key()
