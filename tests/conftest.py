"""What every test shares: how property tests run, which tests keep to one worker, an API server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

# Property tests are not timed, because CI machines are busy.
settings.register_profile("understudy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("understudy")

if TYPE_CHECKING:
    from tests.integration.control_plane import ControlPlane

TOGETHER = (
    "tests/integration/test_platform_",
    "tests/chart/test_api_server",
    "tests/integration/test_controller_cluster",
    "tests/cluster/test_platform",
    "tests/cluster/",
)
"""How the names of tests begin that share a live platform, an API server, or a release; the first
one counts."""
API_SERVER = TOGETHER[1:3]


class FilesTogether(LoadFileScheduling):
    """A file's tests run on one worker, and so do all that share what took long to start."""

    def _split_scope(self, nodeid: str) -> str:
        shared = next((begin for begin in TOGETHER if nodeid.startswith(begin)), None)
        if shared is None:
            return str(super()._split_scope(nodeid))
        return "API server" if shared in API_SERVER else shared


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real API server for all tests that need one, each in namespaces of its own."""
    from tests.integration.control_plane import ControlPlane, find_binaries
    from understudy.local.ports import free_port

    binaries = find_binaries()
    assert binaries is not None, "tests that need it are skipped where it cannot run"
    ports = (free_port(), free_port(), free_port())
    found = ControlPlane(tmp_path_factory.mktemp("plane"), binaries, ports)
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesTogether:
    """Deal out files instead of single tests: many share something that took long to start."""
    return FilesTogether(config, log)
