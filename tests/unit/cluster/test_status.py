"""What the API server is told of a pod."""

import pytest

from deploy.cluster.agent.status import State, conditions, container_status, is_overruled, phase


def running(name: str = "c", *, is_ready: bool = True) -> State:
    return State(name, "image", started_at="2026-01-01T00:00:00Z", is_ready=is_ready)


def ended(code: int) -> State:
    state = running()
    state.exit_code, state.finished_at, state.is_ready = code, "2026-01-01T00:00:01Z", False
    return state


@pytest.mark.parametrize(
    ("main", "is_initialised", "is_final", "has_failed", "expected"),
    [
        ([State("c", "i")], False, False, False, "Pending"),
        ([State("c", "i"), running()], True, False, False, "Pending"),
        ([running()], True, False, False, "Running"),
        ([ended(1)], True, False, False, "Running"),
        ([ended(0), ended(0)], True, True, False, "Succeeded"),
        ([ended(0), ended(1)], True, True, False, "Failed"),
        ([State("c", "i")], False, True, True, "Failed"),
    ],
)
def test_the_phase_follows_the_containers(
    main: list[State], is_initialised: bool, is_final: bool, has_failed: bool, expected: str
) -> None:
    found = phase(main, is_initialised=is_initialised, is_final=is_final, has_failed=has_failed)
    assert found == expected


def test_a_pod_is_ready_once_all_its_containers_are() -> None:
    main = [running("a"), running("b", is_ready=False)]
    told = conditions(main, has_network=True, is_initialised=True, current="Running", old={})
    by_type = {condition["type"]: condition for condition in told}
    assert by_type["Ready"]["status"] == "False"
    assert by_type["Ready"]["message"] == "containers with unready status: ['b']"
    main[1].is_ready = True
    told = conditions(main, has_network=True, is_initialised=True, current="Running", old={})
    assert {condition["status"] for condition in told} == {"True"}


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    old = {"Ready": {"type": "Ready", "status": "True", "lastTransitionTime": "then"}}
    for is_ready, keeps in ((True, True), (False, False)):
        main = [running(is_ready=is_ready)]
        told = conditions(main, has_network=True, is_initialised=True, current="Running", old=old)
        ready = next(condition for condition in told if condition["type"] == "Ready")
        assert (ready["lastTransitionTime"] == "then") is keeps


def test_a_container_is_waiting_running_or_ended() -> None:
    assert container_status(State("c", "i", waiting="X"))["state"]["waiting"]["reason"] == "X"
    assert "running" in container_status(running())["state"]
    assert container_status(ended(3))["state"]["terminated"]["exitCode"] == 3


@pytest.mark.parametrize(
    ("containers", "pod", "expected"),
    [("True", "False", True), ("True", "True", False), ("False", "False", False)],
)
def test_a_ready_pod_of_a_node_that_was_silent_is_told_anew(
    containers: str, pod: str, expected: bool
) -> None:
    told = {"ContainersReady": containers, "Ready": pod}
    entries = [{"type": kind, "status": value} for kind, value in told.items()]
    assert is_overruled({"status": {"conditions": entries}}) is expected
    assert not is_overruled({})
