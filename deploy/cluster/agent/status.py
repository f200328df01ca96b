"""What the agent tells the API server of a pod, as a function of its containers' states."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from deploy.cluster.agent.api import Json


@dataclass(slots=True)
class State:
    """One container now. It is waiting, running (`started_at`) or ended (`exit_code`)."""

    name: str
    image: str
    waiting: str = "ContainerCreating"
    message: str = ""
    started_at: str = ""
    finished_at: str = ""
    exit_code: int | None = None
    reason: str = ""
    container_id: str = ""
    restarts: int = 0
    is_started: bool = False
    is_ready: bool = False
    last: Json = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        """Whether its process runs."""
        return bool(self.started_at) and self.exit_code is None

    @property
    def has_succeeded(self) -> bool:
        """Whether it ended with status 0."""
        return self.exit_code == 0


def now() -> str:
    """Return the time as the API server writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def terminated(state: State) -> Json:
    """Return the `terminated` part of a container that has ended."""
    return {
        "terminated": {
            "exitCode": state.exit_code,
            "reason": state.reason,
            "message": state.message,
            "startedAt": state.started_at or None,
            "finishedAt": state.finished_at,
            "containerID": state.container_id,
        }
    }


def container_status(state: State) -> Json:
    """Return one entry of `containerStatuses`."""
    if state.exit_code is not None:
        current = terminated(state)
    elif state.is_running:
        current = {"running": {"startedAt": state.started_at}}
    else:
        current = {"waiting": {"reason": state.waiting, "message": state.message}}
    return {
        "name": state.name,
        "image": state.image,
        "imageID": state.image,
        "containerID": state.container_id,
        "state": current,
        "lastState": state.last,
        "ready": state.is_ready,
        "started": state.is_started,
        "restartCount": state.restarts,
    }


def phase(main: Iterable[State], *, is_initialised: bool, is_final: bool, has_failed: bool) -> str:
    """Return the phase of a pod; `is_final` says that no container will be started again."""
    main = tuple(main)
    if has_failed:
        return "Failed"
    if is_final and is_initialised:
        return "Succeeded" if all(state.has_succeeded for state in main) else "Failed"
    has_started = all(state.started_at or state.restarts for state in main)
    return "Running" if is_initialised and has_started else "Pending"


def is_overruled(pod: Json) -> bool:
    """Tell whether a pod that is ready is taken for one that is not.

    That is what the controllers do to the pods of a node that was silent for too long; the node
    has to tell them anew once it is back.
    """
    told = {one["type"]: one["status"] for one in pod.get("status", {}).get("conditions", [])}
    return told.get("ContainersReady") == "True" and told.get("Ready") == "False"


def conditions(
    main: Iterable[State],
    *,
    has_network: bool,
    is_initialised: bool,
    current: str,
    old: Mapping[str, Json],
) -> list[Json]:
    """Return the conditions of a pod; one that did not change keeps its time."""
    unready = [state.name for state in main if not state.is_ready]
    is_over = current in ("Succeeded", "Failed")
    reason = "PodCompleted" if is_over else "ContainersNotReady"
    message = "" if is_over else f"containers with unready status: {unready}"
    is_ready = is_initialised and not unready and not is_over
    told: list[tuple[str, bool, str, str]] = [
        ("PodReadyToStartContainers", has_network, "", ""),
        ("Initialized", is_initialised, "ContainersNotInitialized", ""),
        ("ContainersReady", is_ready, reason, message),
        ("Ready", is_ready, reason, message),
    ]
    return [_condition(one, old.get(one[0])) for one in told]


def _condition(told: tuple[str, bool, str, str], old: Json | None) -> Json:
    kind, is_true, reason, message = told
    status = "True" if is_true else "False"
    keeps = old is not None and old["status"] == status
    return {
        "type": kind,
        "status": status,
        "reason": None if is_true else reason or None,
        "message": None if is_true else message or None,
        "lastTransitionTime": old["lastTransitionTime"] if keeps and old is not None else now(),
    }
