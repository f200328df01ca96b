"""A release that is changed while it serves: no stream fails, no token changes.

The tests share one steady load and go on from one another. They print the longest time that a
stream stood still meanwhile; it is a figure of the machine, and nothing is asserted of it.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.cluster.kube import Refused, wait_until
from tests.cluster.load import Load, steady_load
from tests.cluster.release import Release, Values, address, merged

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

NUM_STREAMS: Final = 2
TWO_OF_EACH: Final = {"router": {"replicas": 2}, "attention": {"replicas": 2}}
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def wide(release: Release, values: Values) -> Release:
    """The release with two routers, and two attention workers in each pool."""
    release.change(merged(values, TWO_OF_EACH))
    return release


@pytest.fixture(scope="module")
def load(wide: Release, api_key: str) -> Iterator[Load]:
    """A load that goes on through all tests of this module."""
    with steady_load(address(wide.kube, 9090), api_key, NUM_STREAMS) as running:
        yield running


@contextlib.contextmanager
def nothing_shows(load: Load, record_property: Record) -> Iterator[None]:
    """Check that no stream fails and no pool's answer changes, from before the block to after it.

    While the SLM pool is away the LLM may stand in for it; that is counted.
    """
    start = len(load.told)
    yield
    load.go_on()
    told = load.told[start:]
    assert load.errors == []
    assert {len(different) for different in load.answers().values()} == {1}
    assert {one.question for one in told} == set(load.questions)
    usual = {one.question: one.pool for one in reversed(load.told)}
    record_property("streams", len(told))
    record_property("stood in for", sum(one.pool != usual[one.question] for one in told))
    record_property("longest pause", f"{load.longest_gap_s(start):.1f} s")


def test_an_upgrade_to_another_image_tag_shows_in_no_answer(
    wide: Release, values: Values, load: Load, record_property: Record
) -> None:
    old = {pod["metadata"]["uid"] for pod in wide.kube.get("pods")["items"]}
    with nothing_shows(load, record_property):
        wide.change(merged(values, {**TWO_OF_EACH, "image": {"tag": "next"}}))
    for component in ("router", "attention", "experts", "controller", "distiller"):
        for pod in wide.pods(component):
            assert pod["metadata"]["uid"] not in old
            assert pod["spec"]["containers"][0]["image"].endswith(":next")


def test_the_deletion_of_a_router_shows_in_no_answer(
    wide: Release, load: Load, record_property: Record
) -> None:
    with nothing_shows(load, record_property):
        name = wide.pods("router")[0]["metadata"]["name"]
        wide.kube.run("delete", "pod", name)
        wide.rolled_out("deployment", "router")
    assert name not in {pod["metadata"]["name"] for pod in wide.pods("router")}


@pytest.mark.parametrize(
    ("component", "pool"), [("attention", "slm"), ("attention", "llm"), ("experts", "llm")]
)
def test_the_eviction_of_a_worker_shows_in_no_answer(
    wide: Release, load: Load, record_property: Record, component: str, pool: str
) -> None:
    first, second = (pod["metadata"] for pod in wide.pods(component, pool))
    with nothing_shows(load, record_property):
        wide.evict(first["name"])
        with pytest.raises(Refused, match="disruption budget"):
            wide.evict(second["name"])
        wait_until(lambda: first["uid"] not in uids(wide, component, pool), "the pod to end")
        wide.rolled_out("statefulset", f"{pool}-{component}")


def uids(release: Release, component: str, pool: str) -> set[str]:
    """Return which pods there are, those that end included."""
    labels = f"app.kubernetes.io/component={component},understudy.dev/pool={pool}"
    return {one["metadata"]["uid"] for one in release.kube.get("pods", selector=labels)["items"]}
