"""What every test shares: how property tests run, and which tests keep to one worker."""

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

# Property tests are not timed, because CI machines are busy.
settings.register_profile("understudy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("understudy")

LIVE_PLATFORM = "tests/integration/test_platform_"


class FilesTogether(LoadFileScheduling):
    """A file's tests run on one worker, and so do all that share the one live platform."""

    def _split_scope(self, nodeid: str) -> str:
        return LIVE_PLATFORM if nodeid.startswith(LIVE_PLATFORM) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesTogether:
    """Deal out files instead of single tests: many share something that took long to start."""
    return FilesTogether(config, log)
