"""A release that is changed while it serves: no stream fails, no token changes.

The tests share one steady load and go on from one another; `interrupted` checks that changes met
streams. They print the longest time that a stream stood still meanwhile; it is a figure of the
machine, and nothing is asserted of it.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.interrupted import Record, carrier, outlasting, placed_again
from tests.cluster.kube import Kube, Refused, wait_until
from tests.cluster.load import Load, peak_questions, steady_load
from tests.cluster.release import (
    RELEASE,
    START_TIMEOUT_S,
    Release,
    Values,
    address,
    decisions,
    merged,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

NUM_STREAMS: Final = 4
NUM_SLM_STREAMS: Final = 2
NUM_KEPT_STREAMS: Final = 2
"""So many that one worker is enough for them."""
NUM_PEAK_STREAMS: Final = 16
NEXT: Final = {"image": {"tag": "next"}}
TWO_OF_EACH: Final = {**NEXT, "router": {"replicas": 2}, "attention": {"replicas": 2}}
LATER: Final = {**TWO_OF_EACH, "image": {"tag": "later"}}
MAX_WORKERS: Final = 3
PARTS: Final = (("attention", "slm"), ("attention", "llm"), ("experts", "llm"))
TO_LARGEST: Final = f"-> {MAX_WORKERS} replicas"
SIZED: Final = {
    "enabled": True,
    "upCoolDownS": 0,
    "downCoolDownS": 5,
    "downWindowS": 10,
    "settings": {"intervalS": 3},
    "pools": [
        {
            "name": "slm",
            "ttftS": 60,
            "tpotS": 1,
            "utilisation": 0.25,
            "startS": 10,
            "attention": {"maxReplicas": MAX_WORKERS},
        }
    ],
}
"""Sized by work alone, at paces of seconds. Workers of this machine share its cores, so a pool gets
more of them at a quarter of what one could do."""


@contextlib.contextmanager
def nothing_shows(load: Load, record_property: Record) -> Iterator[None]:
    """Check that no stream fails and no pool's answer changes, from before the block to after it.

    While the SLM pool is away the LLM may stand in for it; that is counted.
    """
    if not load.told:
        load.go_on()
    start = len(load.told)
    yield
    load.go_on()
    told = load.told[start:]
    assert load.errors == []
    assert load.changed() == {}
    assert {one.question for one in told} == set(load.questions)
    usual = {one.question: one.pool for one in reversed(load.told)}
    record_property("streams", len(told))
    record_property("answers that moved pool", sum(one.pool != usual[one.question] for one in told))
    record_property("longest pause", f"{load.longest_gap_s(start):.1f} s")


def test_an_upgrade_of_single_workers_fails_no_request(
    release: Release, values: Values, api_key: str, record_property: Record
) -> None:
    """While the one worker of a pool restarts its streams wait, or the LLM stands in.

    A worker that drains finishes what it runs where that is short, so nothing need be placed again.
    """
    asked = steady_load(address(release.kube, 9090), api_key, NUM_STREAMS)
    with asked as load, nothing_shows(load, record_property):
        release.change(merged(values, NEXT))
    for component in ("router", "attention", "experts"):
        for pod in release.pods(component):
            assert pod["spec"]["containers"][0]["image"].endswith(":next")


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


def test_an_upgrade_to_another_image_tag_shows_in_no_answer(
    wide: Release, values: Values, state: Path, load: Load, record_property: Record
) -> None:
    old = {pod["metadata"]["uid"] for pod in wide.kube.get("pods")["items"]}
    with (
        placed_again(wide, state, [load], record_property, "llm"),
        nothing_shows(load, record_property),
    ):
        wide.change(merged(values, LATER))
    for component in ("router", "attention", "experts", "controller", "distiller"):
        for pod in wide.pods(component):
            assert pod["metadata"]["uid"] not in old
            assert pod["spec"]["containers"][0]["image"].endswith(":later")


def test_the_deletion_of_a_router_shows_in_no_answer(
    wide: Release, state: Path, load: Load, api_key: str, record_property: Record
) -> None:
    with nothing_shows(load, record_property):
        router = carrier(wide, "router")
        name = router["metadata"]["name"]
        with outlasting(router, state, api_key, record_property):
            wide.kube.run("delete", "pod", name, "--wait=false")
        wide.rolled_out("deployment", "router")
    assert name not in {pod["metadata"]["name"] for pod in wide.pods("router")}


def test_the_eviction_of_a_worker_of_each_kind_shows_in_no_answer(
    wide: Release, state: Path, load: Load, api_key: str, record_property: Record
) -> None:
    slm_load = steady_load(address(wide.kube, 9090), api_key, NUM_SLM_STREAMS, peak_questions())
    evicted = {}
    with (
        slm_load as texts,
        placed_again(wide, state, [load, texts], record_property, "slm", "llm"),
        nothing_shows(texts, record_property),
        nothing_shows(load, record_property),
    ):
        for part in PARTS:
            evicted[part] = carrier(wide, *part)["metadata"]
            (other,) = [
                one["metadata"]["name"]
                for one in wide.pods(*part)
                if one["metadata"]["uid"] != evicted[part]["uid"]
            ]
            wide.evict(evicted[part]["name"])
            with pytest.raises(Refused, match="disruption budget"):
                wide.evict(other)
        for part in PARTS:
            wait_until(partial(has_left, wide, part, evicted[part]["uid"]), "the pod to end")
        wide.all_rolled_out()


def has_left(release: Release, part: tuple[str, str], uid: str) -> bool:
    """Say whether a pod is gone, and has not only been told to end."""
    labels = f"app.kubernetes.io/component={part[0]},understudy.dev/pool={part[1]}"
    pods = release.kube.get("pods", selector=labels)["items"]
    return uid not in {one["metadata"]["uid"] for one in pods}


def test_the_drain_of_a_node_shows_in_no_answer(
    wide: Release, state: Path, load: Load, record_property: Record
) -> None:
    node = carrier(wide, "attention", "llm")["spec"]["nodeName"]
    selector = f"app.kubernetes.io/instance={RELEASE}"
    drain = ("drain", node, f"--pod-selector={selector}", "--delete-emptydir-data")
    timeout = f"--timeout={START_TIMEOUT_S}s"
    before = placed_on(wide.kube, node, selector)
    try:
        with (
            placed_again(wide, state, [load], record_property, "llm"),
            nothing_shows(load, record_property),
        ):
            wide.kube.run(*drain, timeout, timeout_s=START_TIMEOUT_S)
            wide.all_rolled_out()
    finally:
        wide.kube.run("uncordon", node)
    record_property("pods moved", len(before))
    assert any("attention" in name for name in before)
    assert placed_on(wide.kube, node, selector) == set()


def placed_on(kube: Kube, node: str, selector: str) -> set[str]:
    """Return the selected pods that run on a node."""
    pods = kube.get("pods", selector=selector)["items"]
    return {
        one["metadata"]["name"]
        for one in pods
        if one["spec"].get("nodeName") == node and one["status"]["phase"] == "Running"
    }


def test_a_pool_follows_its_load_up_and_down_and_shows_it_in_no_answer(
    wide: Release, values: Values, load: Load, api_key: str, record_property: Record
) -> None:
    kube, name = wide.kube, f"{RELEASE}-slm-attention"
    load.keep(NUM_KEPT_STREAMS)
    with nothing_shows(load, record_property):
        wide.change(merged(values, {**LATER, "scaling": SIZED}))
        wait_until(lambda: has_workers(kube, name, 1), "one worker", START_TIMEOUT_S)
        peak_load = steady_load(address(kube, 9090), api_key, NUM_PEAK_STREAMS, peak_questions())
        with peak_load as peak:
            wait_until(lambda: has_workers(kube, name, MAX_WORKERS), "more workers", 300)
            peak.wait_for(2 * NUM_PEAK_STREAMS)
        wait_until(lambda: has_workers(kube, name, 1), "one worker again", 300)
    assert peak.errors == []
    assert peak.changed() == {}
    record_property("streams of the peak", len(peak.told))
    record_property("longest pause of the peak", f"{peak.longest_gap_s():.1f} s")
    told = decisions(kube, name)
    for number, message in enumerate(told):
        record_property(f"decision {number}", message)
    grown = [number for number, message in enumerate(told) if TO_LARGEST in message]
    assert grown
    assert any("-> 1 replicas" in message for message in told[grown[0] + 1 :])


def has_workers(kube: Kube, name: str, num_pods: int) -> bool:
    """Say whether a StatefulSet is to have so many pods, all of them are ready, and none ends."""
    found = kube.get("statefulset", name)
    status = found["status"]
    sizes = (found["spec"]["replicas"], status.get("replicas", 0), status.get("readyReplicas", 0))
    return sizes == (num_pods,) * 3
