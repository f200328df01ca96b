"""The API server's client: every call, and what refusals become."""

import pytest

from services.controller.clients.kubernetes import KubernetesCluster
from services.controller.cluster import Conflict, Note, Workload, WorkloadKind
from tests.contract.controller.api_server import COST, NAMESPACE, pod
from understudy.errors import NotFound, Unavailable

LLM = Workload(WorkloadKind.DEPLOYMENT, "llm")


@pytest.fixture
async def cluster(api, stack):
    found = KubernetesCluster(NAMESPACE, "me", api.configuration)
    stack.push_async_callback(found.aclose)
    return found


async def test_a_scale_is_read_and_changed_under_its_version(api, cluster):
    scale = await cluster.scale(LLM)
    assert (scale.replicas, scale.selector, scale.version) == (1, "app=llm", "1")
    await cluster.set_replicas(LLM, 3, scale.version)
    assert api.replicas == 3
    with pytest.raises(Conflict):
        await cluster.set_replicas(LLM, 5, scale.version)
    assert api.replicas == 3
    await cluster.set_replicas(LLM, 0, (await cluster.scale(LLM)).version)
    assert (await cluster.scale(LLM)).replicas == 0


async def test_pods_are_read_with_ports_state_and_mark(api, cluster):
    refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    api.pods = {
        "a": pod("a", "10.0.0.1", 91, 90),
        "b": pod("b", "", 91, 90, ready=False, conditions=[refused], phase="Pending"),
        "c": pod("c", "10.0.0.3", 91, 90, phase="Failed"),
        "d": pod("d", "10.0.0.4", 91, 90),
    }
    api.pods["d"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    api.pods["d"]["metadata"]["annotations"][COST] = "-7"
    api.page = 1
    found = {one.name: one for one in await cluster.pods("app=llm")}
    assert set(found) == {"a", "b", "d"}
    assert (found["a"].ip, found["a"].metrics_port, found["a"].grpc_port) == ("10.0.0.1", 91, 90)
    assert found["a"].is_ready
    assert not found["a"].is_unschedulable
    assert found["b"].is_unschedulable
    assert found["d"].is_terminating
    assert found["d"].deletion_cost == -7


async def test_marks_come_and_go_and_a_lost_pod_needs_none(api, cluster):
    api.pods = {"a": pod("a", "10.0.0.1", 91, 90)}
    await cluster.mark("a", -100)
    assert api.pods["a"]["metadata"]["annotations"] == {COST: "-100"}
    await cluster.mark("a", None)
    assert api.pods["a"]["metadata"]["annotations"] == {}
    await cluster.mark("gone", -100)


async def test_an_event_names_the_workload_and_is_bounded(api, cluster):
    await cluster.write(Note(LLM, "ScaledUp", "x" * 5000, is_warning=True))
    [event] = api.events
    assert event["involvedObject"]["name"] == "llm"
    assert event["involvedObject"]["kind"] == "Deployment"
    assert event["type"] == "Warning"
    assert len(event["message"]) == 1000


async def test_leases_are_created_read_and_replaced_under_their_version(api, cluster):
    assert await cluster.read("lease") is None
    await cluster.create("lease", "me", 15)
    with pytest.raises(Conflict):
        await cluster.create("lease", "other", 15)
    found = await cluster.read("lease")
    assert found is not None
    assert found.holder == "me"
    await cluster.replace("lease", found, 15)
    with pytest.raises(Conflict):
        await cluster.replace("lease", found, 15)


async def test_refusals_are_told_with_what_was_asked(api, cluster):
    with pytest.raises(NotFound):
        await cluster.scale(Workload(WorkloadKind.STATEFUL_SET, "nobody"))
    api.refusals = {"GET": 403}
    with pytest.raises(Unavailable, match=r"answered 403 to GET .*deployments/llm/scale"):
        await cluster.scale(LLM)


async def test_a_server_that_is_away_is_unavailable(api, stack, cluster):
    await stack.aclose()
    other = KubernetesCluster(NAMESPACE, "me", api.configuration)
    with pytest.raises(Unavailable, match="cannot be asked"):
        await other.scale(LLM)
    await other.aclose()
