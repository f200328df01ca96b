"""The laptop's preset, sized by its controller, put to sleep, woken and rolled back.

The tests go on from one another, as an operator does; nothing else is asked meanwhile.
"""

import pytest

from tests.cluster.kube import Kube, wait_until
from tests.cluster.release import (
    RELEASE,
    START_TIMEOUT_S,
    Release,
    Values,
    decisions,
    helm,
    install,
    merged,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

VALUES: Values = {"serving": {"preStopS": 2}}
SIZED = {
    "enabled": True,
    "settings": {"intervalS": 3},
    "pools": [{"name": "llm", "attention": {"maxReplicas": 2}, "experts": {"minReplicas": 3}}],
}
SLEEPY = {
    "enabled": True,
    "settings": {"intervalS": 3},
    "downCoolDownS": 5,
    "downWindowS": 5,
    "pools": [{"name": "llm", "idleS": 10, "startS": 20}],
}


@pytest.fixture(scope="module")
def sized() -> Release:
    """The laptop's preset; it ends with the cluster."""
    return install(Release(Kube("sized"), "sized"), VALUES)


def has(release: Release, kind: str, part: str) -> bool:
    """Say whether there is a workload of a kind."""
    items = release.kube.get(kind)["items"]
    return f"{RELEASE}-{part}" in {one["metadata"]["name"] for one in items}


def test_the_controller_sizes_a_pool_whose_experts_it_finds_by_their_service(
    sized: Release,
) -> None:
    sized.change(merged(VALUES, {"scaling": SIZED}))

    def is_ready() -> bool:
        status = sized.kube.get("deployment", f"{RELEASE}-llm-experts")["status"]
        return bool(status.get("readyReplicas") == 3)

    wait_until(is_ready, "three expert workers", START_TIMEOUT_S)
    told = decisions(sized.kube, f"{RELEASE}-llm-experts")
    assert any(message.startswith("1 -> 3 replicas, 3 needed") for message in told)
    lease = sized.kube.get("lease", f"{RELEASE}-controller")
    assert lease["spec"]["holderIdentity"].startswith(f"{RELEASE}-controller-")
    assert not has(sized, "statefulset", "llm-experts")
    assert "answered by" in sized.test()


def test_a_pool_that_sleeps_is_woken_by_the_next_request(sized: Release) -> None:
    workers = [f"{RELEASE}-llm-attention", f"{RELEASE}-llm-experts"]
    sized.change(merged(VALUES, {"scaling": SLEEPY}))

    def is_asleep() -> bool:
        # A worker that still drains would answer without any awakening.
        return not sized.kube.get("pods", selector="understudy.dev/pool=llm")["items"]

    def num_decisions() -> int:
        return sum(len(decisions(sized.kube, worker, "ScaledUp")) for worker in workers)

    wait_until(is_asleep, "the pool to sleep", START_TIMEOUT_S)
    before = num_decisions()
    assert "answered by" in sized.test()
    # It may sleep again by now: that it woke is told by the controller.
    assert num_decisions() > before


def test_a_rollback_brings_the_workloads_of_the_first_revision_back(sized: Release) -> None:
    timeout = f"--timeout={START_TIMEOUT_S}s"
    helm(sized.kube, "rollback", sized.name, "1", "--wait", timeout)
    assert has(sized, "statefulset", "llm-experts")
    assert not has(sized, "deployment", "llm-experts")
    assert "answered by" in sized.test()
