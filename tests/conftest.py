"""What every test shares: how property tests run, and which tests keep to one worker."""

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

# Property tests are not timed, because CI machines are busy.
settings.register_profile("understudy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("understudy")

TOGETHER = ("tests/integration/test_platform_", "tests/cluster/test_platform", "tests/cluster/")
"""How the names of tests begin that share a live platform, or a release; the first one counts."""


class FilesTogether(LoadFileScheduling):
    """A file's tests run on one worker, and so do all that share what took long to start."""

    def _split_scope(self, nodeid: str) -> str:
        shared = (begin for begin in TOGETHER if nodeid.startswith(begin))
        return next(shared, None) or super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesTogether:
    """Deal out files instead of single tests: many share something that took long to start."""
    return FilesTogether(config, log)
