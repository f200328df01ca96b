"""Services by name: virtual addresses, headless names, and only what is ready."""

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kube import SECURE, USER, Kube, container, log_of, pod, service, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SERVER = (
    "import http.server, os, socket\n"
    "class Handler(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers()\n"
    "        self.wfile.write(socket.gethostname().encode() + b'\\n')\n"
    "http.server.ThreadingHTTPServer(('0.0.0.0', 8080), Handler).serve_forever()\n"
)
GET = (
    "import sys, urllib.request as u\n"
    "for url in sys.argv[1:]: print(u.urlopen(url).read().decode().strip())"
)
NAMES = "import socket, sys; print(*sorted({a[4][0] for a in socket.getaddrinfo(sys.argv[1], 80)}))"
PROBE = {"httpGet": {"path": "/", "port": "main"}, "periodSeconds": 1, "timeoutSeconds": 5}


def server(**fields: Any) -> dict[str, Any]:
    return container(
        image="understudy",
        command=["python", "-c", SERVER],
        ports=[{"name": "main", "containerPort": 8080}],
        **{"readinessProbe": PROBE, **fields},
    )


def stateful_set(name: str, replicas: int) -> dict[str, Any]:
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "securityContext": USER,
            "terminationGracePeriodSeconds": 1,
            "containers": [server(securityContext=SECURE)],
        },
    }
    spec = {
        "serviceName": name,
        "replicas": replicas,
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": {"app": name}},
        "template": template,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name},
        "spec": spec,
    }


def ask(kube: Kube, state: Path, program: str, *arguments: str) -> list[str]:
    """Run a Python program in a pod and return its lines."""
    main = container(image="understudy", command=["python", "-c", program, *arguments])
    kube.apply(pod("asker", main, restartPolicy="Never"))
    kube.wait("pod/asker", "jsonpath={.status.phase}=Succeeded")
    lines = log_of(state, kube.get("pod", "asker")).splitlines()
    kube.run("delete", "pod", "asker")
    return lines


def test_a_service_leads_to_its_ready_pods_in_turn(kube: Kube, state: Path) -> None:
    broken = server(readinessProbe={"tcpSocket": {"port": 1}, "periodSeconds": 1})
    kube.apply(
        service("web", 80),
        *(pod(name, server(), labels={"app": "web"}) for name in ("a", "b")),
        pod("c", broken, labels={"app": "web"}),
    )
    kube.wait("pod/a", "condition=Ready")
    kube.wait("pod/b", "condition=Ready")
    kube.wait("pod/c", "jsonpath={.status.phase}=Running")
    assert set(ask(kube, state, GET, *["http://web"] * 4)) == {"a", "b"}
    full = f"http://web.{kube.namespace}.svc.cluster.local:80"
    assert set(ask(kube, state, GET, full)) <= {"a", "b"}


def test_a_set_behind_a_headless_service_has_a_name_for_each_pod(kube: Kube, state: Path) -> None:
    kube.apply(service("w", 8080, is_headless=True), stateful_set("w", 2))
    kube.wait("statefulset/w", "jsonpath={.status.readyReplicas}=2")
    addresses = sorted(kube.get("pod", f"w-{number}")["status"]["podIP"] for number in range(2))
    assert ask(kube, state, NAMES, "w") == [" ".join(addresses)]
    assert ask(kube, state, GET, "http://w-1.w:8080", "http://w-0.w:8080") == ["w-1", "w-0"]
    kube.run("scale", "statefulset", "w", "--replicas=1")
    kube.wait("pod/w-1", "delete")
    remaining = [kube.get("pod", "w-0")["status"]["podIP"]]
    wait_until(lambda: ask(kube, state, NAMES, "w") == remaining, "the name to lose an address")


def test_pods_with_the_same_port_do_not_meet(kube: Kube) -> None:
    kube.apply(pod("a", server()), pod("b", server()))
    kube.wait("pod/a", "condition=Ready")
    kube.wait("pod/b", "condition=Ready")


def test_an_evicted_pod_leaves_only_where_its_budget_allows(kube: Kube) -> None:
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "w"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "w"}}},
    }
    kube.apply(service("w", 8080, is_headless=True), stateful_set("w", 2), budget)
    kube.wait("statefulset/w", "jsonpath={.status.readyReplicas}=2")
    kube.wait("pdb/w", "jsonpath={.status.disruptionsAllowed}=1")
    before = kube.get("pod", "w-0")["metadata"]["uid"]
    node = kube.get("pod", "w-0")["spec"]["nodeName"]
    kube.run("drain", node, "--pod-selector=app=w", "--ignore-daemonsets", "--timeout=120s")
    try:
        kube.wait("statefulset/w", "jsonpath={.status.readyReplicas}=2")
        after = kube.get("pod", "w-0")
        assert after["metadata"]["uid"] != before
        assert after["spec"]["nodeName"] != node
    finally:
        kube.run("uncordon", node)


def test_a_redis_of_the_chart_is_reached_from_other_pods(kube: Kube, state: Path) -> None:
    command = ["valkey-server", "--save", "", "--dir", "/tmp"]
    main = container(
        image="valkey/valkey:8.1-alpine",
        command=command,
        ports=[{"name": "main", "containerPort": 6379}],
        readinessProbe={"exec": {"command": ["valkey-cli", "ping"]}, "timeoutSeconds": 5},
    )
    kube.apply(service("store", 6379), pod("store", main))
    kube.wait("pod/store", "condition=Ready")
    program = "import redis; print(redis.Redis('store').set('key', 'value'))"
    assert ask(kube, state, program) == ["True"]
