"""The API server as tests use it: kubectl in one namespace, and pods of few lines."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

WAIT_S: Final = 120
POLL_S: Final = 0.5
RESTRICTED: Final = {"pod-security.kubernetes.io/enforce": "restricted"}
SECURE: Final[Json] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
USER: Final[Json] = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def wait_until(is_true: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Poll until something is true that no watch tells of."""
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline_s, f"waited {timeout_s} s for {what}"
        time.sleep(POLL_S)


class Refused(Exception):
    """kubectl failed; the message is what it printed."""


class Kube:
    """One namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def run(self, *arguments: str, stdin: str = "", timeout_s: float = WAIT_S + 30) -> str:
        """Run kubectl in the namespace and return what it printed."""
        result = subprocess.run(
            ["kubectl", "--namespace", self.namespace, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if result.returncode:
            raise Refused(f"kubectl {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout

    def create_namespace(self) -> None:
        """Make the namespace, and wait for the account that pods in it need."""
        metadata = {"name": self.namespace, "labels": RESTRICTED}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        self.run("wait", "--for=create", "serviceaccount/default", f"--timeout={WAIT_S}s")

    def delete_namespace(self) -> None:
        """Have everything in it removed; nothing waits for the end of it."""
        self.run("delete", "namespace", self.namespace, "--wait=false")

    def apply(self, *objects: Json) -> None:
        """Create or change objects; unknown fields are refused."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.run("apply", "--validate=strict", "--filename", "-", stdin=json.dumps(items))

    def get(self, kind: str, name: str = "", *, selector: str = "") -> Json:
        """Return an object, or a list of those selected."""
        which = [name] if name else ["--selector", selector] if selector else []
        found: Json = json.loads(self.run("get", kind, *which, "--output", "json"))
        return found

    def wait(self, what: str, condition: str, timeout_s: int = WAIT_S) -> None:
        """Wait for `condition=Ready`, `jsonpath=...` or `delete` of an object."""
        self.run("wait", what, f"--for={condition}", f"--timeout={timeout_s}s")

    def events(self, reason: str) -> list[str]:
        """Return the messages of all events with this reason."""
        found = self.run("get", "events", "--output", "json")
        return [item["message"] for item in json.loads(found)["items"] if item["reason"] == reason]


def container(script: str = "", **fields: Any) -> Json:
    """Return a container that the restricted standard admits; the script is the shell's."""
    command = {"command": ["sh", "-c", script]} if script else {}
    base = {"name": "main", "image": "busybox", "securityContext": SECURE, **command}
    return {**base, **fields}


def pod(name: str, *containers: Json, labels: Json | None = None, **spec: Any) -> Json:
    """Return a pod that ends quickly when it is told to."""
    base = {
        "securityContext": USER,
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": False,
        "containers": list(containers),
    }
    metadata = {"name": name, "labels": labels or {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**base, **spec}}


def service(name: str, port: int, *, is_headless: bool = False, app: str = "") -> Json:
    """Return a Service of the pods labelled `app`."""
    spec: Json = {
        "selector": {"app": app or name},
        "ports": [{"name": "main", "port": port, "targetPort": "main"}],
    }
    if is_headless:
        spec["clusterIP"] = "None"
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def log_of(state: Path, pod_object: Json, name: str = "main", start: int = 0) -> str:
    """Return what a container printed, from the file that the agent keeps."""
    metadata = pod_object["metadata"]
    folder = f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
    return (state / "pods" / folder / "logs" / name / f"{start}.log").read_text()
