"""A release of the chart on the cluster: installed from the laptop's preset, changed, asked."""

import base64
import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from deploy.cluster.layout import ROOT
from tests.cluster.kube import SECURE, Json, Kube, pod, service

RELEASE: Final = "understudy"
CHART: Final = ROOT / "charts" / "understudy"
LAPTOP: Final = CHART / "values-laptop.yaml"
START_TIMEOUT_S: Final = 900
TRACES_PORT: Final = 4317
SPANS: Final = "/var/spans/traces.sqlite"

Values = Mapping[str, object]


def merged(values: Values, changes: Values) -> Values:
    """Return values with changes, as Helm merges them: map by map."""
    found = dict(values)
    for key, change in changes.items():
        old = found.get(key)
        if isinstance(old, Mapping) and isinstance(change, Mapping):
            change = merged(old, change)
        found[key] = change
    return found


def helm(kube: Kube, *arguments: str, stdin: str = "") -> str:
    """Run Helm in a namespace and return what it printed."""
    result = subprocess.run(
        ["helm", "--namespace", kube.namespace, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S + 60,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}{result.stderr}\n{states(kube)}"
    return result.stdout


def states(kube: Kube) -> str:
    """Say how every pod is, and what was told of those that are not well."""
    pods = kube.run("get", "pods", "--output", "wide")
    events = kube.run(
        "get", "events", "--field-selector", "type=Warning", "--sort-by=.lastTimestamp"
    )
    return f"{pods}\n{events}"


def address(kube: Kube, port: int) -> str:
    """Return the address of the router's Service in a namespace."""
    return f"{RELEASE}-router.{kube.namespace}.svc.cluster.local:{port}"


@dataclass(frozen=True, slots=True)
class Release:
    """One release in one namespace; its objects are named alike whatever its own name is."""

    kube: Kube
    name: str = RELEASE

    def change(self, values: Values) -> None:
        """Install, or upgrade to, the laptop's preset with further values; wait for all pods."""
        files = (f"--values={LAPTOP}", "--values=-")
        wait = ("--wait", f"--timeout={START_TIMEOUT_S}s")
        arguments = ("upgrade", "--install", self.name, str(CHART), *files, *wait)
        helm(self.kube, *arguments, stdin=yaml.safe_dump(self._named(values)))

    def _named(self, values: Values) -> dict[str, object]:
        own = {} if self.name == RELEASE else {"fullnameOverride": RELEASE}
        return {**own, **values}

    def test(self) -> str:
        """Run `helm test`; return what Helm and the pod said."""
        return helm(self.kube, "test", self.name, "--logs", f"--timeout={START_TIMEOUT_S}s")

    def rendered(self, values: Values) -> list[Any]:
        """Return the manifests that these values would make of the release."""
        files = (f"--values={LAPTOP}", "--values=-")
        arguments = ("template", self.name, str(CHART), *files)
        text = helm(self.kube, *arguments, stdin=yaml.safe_dump(self._named(values)))
        return [found for found in yaml.safe_load_all(text) if found]

    def remove(self) -> None:
        """Uninstall the release and delete its namespace; nothing waits for the end of it."""
        helm(self.kube, "uninstall", self.name)
        self.kube.delete_namespace()

    def api_key(self) -> str:
        """Return the key that the chart made for callers."""
        data = self.kube.get("secret", f"{RELEASE}-keys")["data"]
        return base64.b64decode(data["api-key"]).decode()

    def pods(self, component: str, pool: str = "") -> list[Any]:
        """Return the pods of a component that are not ending, in the order of their names."""
        labels = [f"app.kubernetes.io/component={component}"]
        labels += [f"understudy.dev/pool={pool}"] if pool else []
        items = self.kube.get("pods", selector=",".join(labels))["items"]
        left = [one for one in items if "deletionTimestamp" not in one["metadata"]]
        return sorted(left, key=lambda one: str(one["metadata"]["name"]))

    def rolled_out(self, kind: str, name: str) -> None:
        """Wait until a workload has all of its pods, ready and of its latest template."""
        timeout = f"--timeout={START_TIMEOUT_S}s"
        self.kube.run(
            "rollout", "status", f"{kind}/{RELEASE}-{name}", timeout, timeout_s=START_TIMEOUT_S
        )

    def all_rolled_out(self) -> None:
        """Wait until every workload has all of its pods."""
        for kind in ("deployment", "statefulset"):
            for item in self.kube.get(kind)["items"]:
                self.rolled_out(kind, item["metadata"]["name"].removeprefix(f"{RELEASE}-"))

    def evict(self, name: str) -> None:
        """Ask for the eviction of a pod, as a drain does; a budget may refuse it."""
        namespace = self.kube.namespace
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
        }
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
        self.kube.run("create", "--raw", path, "--filename", "-", stdin=json.dumps(eviction))


def install(
    made: Release, values: Values, prepare: Callable[[Kube], None] | None = None
) -> Release:
    """Install the laptop's preset into a namespace that enforces the restricted standard."""
    made.kube.create_namespace()
    if prepare is not None:
        prepare(made.kube)
    made.change(values)
    return made


def decisions(kube: Kube, workload: str, *reasons: str) -> list[str]:
    """Return what the controller says of the changes it made to a workload, in their order."""
    wanted = reasons or ("ScaledUp", "ScaledDown")
    mine = [
        one
        for one in kube.get("events")["items"]
        if one["reason"] in wanted and one["involvedObject"]["name"] == workload
    ]
    return [one["message"] for one in sorted(mine, key=lambda one: str(one["eventTime"]))]


def trace_store(kube: Kube) -> None:
    """Start the local trace store as a pod that takes spans over OTLP."""
    environment = {
        "UNDERSTUDY_TRACES_LISTEN": f"0.0.0.0:{TRACES_PORT}",
        "UNDERSTUDY_TRACES_PATH": SPANS,
    }
    container = {
        "name": "main",
        "image": "understudy-router",
        "command": ["python", "-m", "understudy.local.traces"],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": [{"name": "main", "containerPort": TRACES_PORT}],
        "securityContext": SECURE,
        "readinessProbe": {"tcpSocket": {"port": TRACES_PORT}, "periodSeconds": 1},
        "volumeMounts": [
            {"name": "spans", "mountPath": str(Path(SPANS).parent)},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    volumes: list[Json] = [{"name": name, "emptyDir": {}} for name in ("spans", "tmp")]
    kube.apply(pod("traces", container, volumes=volumes), service("traces", TRACES_PORT))
    kube.wait("pod/traces", "condition=Ready")


def spans_file(state: Path, kube: Kube) -> Path:
    """Return the trace store's file, as this side of its pod sees it."""
    found = kube.get("pod", "traces")["metadata"]
    folder = f"{found['namespace']}_{found['name']}_{found['uid']}"
    (path,) = (state / "pods" / folder).rglob(Path(SPANS).name)
    return path
