"""Pods run as their specification says: order, files, variables, probes, restarts and ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kube import SECURE, Kube, container, log_of, pod, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SLEEP = "trap 'exit 0' TERM; sleep 600 & wait"
TOUCHED: dict[str, Any] = {"exec": {"command": ["cat", "/work/ready"]}, "periodSeconds": 1}
WORK: dict[str, Any] = {"name": "work", "emptyDir": {}}
WORK_MOUNT = {"name": "work", "mountPath": "/work"}
API = "https://kubernetes.default.svc/api/v1/namespaces"


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def secret(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def claim(name: str) -> dict[str, Any]:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    kind = "PersistentVolumeClaim"
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def test_initial_containers_and_sidecars_come_before_the_others(kube: Kube, state: Path) -> None:
    first = container("echo first >> /work/log", name="first", volumeMounts=[WORK_MOUNT])
    side = container(
        f"echo side >> /work/log; touch /work/ready; {SLEEP}",
        name="side",
        restartPolicy="Always",
        startupProbe=TOUCHED,
        volumeMounts=[WORK_MOUNT],
    )
    main = container("echo main >> /work/log; cat /work/log", volumeMounts=[WORK_MOUNT])
    kube.apply(pod("p", main, initContainers=[first, side], restartPolicy="Never", volumes=[WORK]))
    kube.wait("pod/p", "jsonpath={.status.phase}=Succeeded")
    found = kube.get("pod", "p")
    assert log_of(state, found) == "first\nside\nmain\n"
    ended = found["status"]["initContainerStatuses"][1]["state"]["terminated"]
    assert ended["exitCode"] == 0


def test_variables_come_from_maps_secrets_and_fields(kube: Kube, state: Path) -> None:
    env = [
        {"name": "ONE", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "one"}}},
        {"name": "HUSH", "valueFrom": {"secretKeyRef": {"name": "s", "key": "hush"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "BOTH", "value": "$(ONE)-$(HUSH)"},
    ]
    script = 'echo "$BOTH $IP $(hostname)"'
    kube.apply(
        config_map("m", one="1"),
        secret("s", hush="2"),
        pod("p", container(script, env=env), restartPolicy="Never"),
    )
    kube.wait("pod/p", "jsonpath={.status.phase}=Succeeded")
    found = kube.get("pod", "p")
    assert log_of(state, found) == f"1-2 {found['status']['podIP']} p\n"
    assert kube.run("logs", "p") == log_of(state, found)


def test_a_pod_waits_for_a_secret_that_is_not_there_yet(kube: Kube) -> None:
    env = [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "late", "key": "x"}}}]
    kube.apply(pod("p", container(SLEEP, env=env)))
    reason = "{.status.containerStatuses[0].state.waiting.reason}"
    kube.wait("pod/p", f"jsonpath={reason}=CreateContainerConfigError")
    kube.apply(secret("late", x="1"))
    kube.wait("pod/p", "condition=Ready")


def test_changed_maps_and_secrets_reach_running_pods(kube: Kube, state: Path) -> None:
    volumes = [{"name": "m", "configMap": {"name": "m"}}]
    script = "until grep -q new /m/value; do sleep 0.1; done; cat /m/value"
    mounts = [{"name": "m", "mountPath": "/m", "readOnly": True}]
    kube.apply(
        config_map("m", value="old"),
        pod("p", container(script, volumeMounts=mounts), volumes=volumes, restartPolicy="Never"),
    )
    kube.wait("pod/p", "jsonpath={.status.phase}=Running")
    kube.apply(config_map("m", value="new"))
    kube.wait("pod/p", "jsonpath={.status.phase}=Succeeded")
    assert log_of(state, kube.get("pod", "p")) == "new"


def test_a_claim_keeps_its_files_from_pod_to_pod(kube: Kube, state: Path) -> None:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]
    mounts = [{"name": "data", "mountPath": "/data"}]
    kube.apply(claim("c"))
    for name in ("one", "two"):
        main = container(f"echo {name} >> /data/log; cat /data/log", volumeMounts=mounts)
        kube.apply(pod(name, main, volumes=volumes, restartPolicy="Never"))
        kube.wait(f"pod/{name}", "jsonpath={.status.phase}=Succeeded")
    assert log_of(state, kube.get("pod", "two")) == "one\ntwo\n"
    folder = state / "claims" / kube.get("pvc", "c")["metadata"]["uid"]
    assert folder.exists()
    kube.run("delete", "pod", "one", "two")
    kube.run("delete", "pvc", "c")
    wait_until(lambda: not folder.exists(), "the folder of a deleted claim to go")


def test_what_restricted_forbids_does_not_work(kube: Kube, state: Path) -> None:
    attempts = [
        "touch /file",
        "touch /etc/file",
        "touch /usr/file",
        "mount -t tmpfs none /work",
        "unshare --user true",
        "unshare --mount true",
        "chown 0 /work/own",
        "ls /root/.ssh",
        f"cat {state}/kubeconfig",
        "kill -0 2",
        "ip link add x type dummy",
    ]
    tries = "; ".join(f"{attempt} 2>/dev/null && echo {attempt}" for attempt in attempts)
    main = container(
        f"touch /work/own; {tries}; id -u; grep -h CapEff /proc/self/status",
        volumeMounts=[WORK_MOUNT],
    )
    kube.apply(pod("p", main, volumes=[WORK], restartPolicy="Never"))
    kube.wait("pod/p", "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}=0")
    assert log_of(state, kube.get("pod", "p")) == "10001\nCapEff:\t0000000000000000\n"


def test_readiness_follows_its_probe(kube: Kube) -> None:
    main = container(
        f"sleep 1; touch /work/ready; sleep 3; rm /work/ready; {SLEEP}",
        readinessProbe={**TOUCHED, "failureThreshold": 1},
        volumeMounts=[WORK_MOUNT],
    )
    kube.apply(pod("p", main, volumes=[WORK]))
    kube.wait("pod/p", "condition=Ready=true")
    kube.wait("pod/p", "condition=Ready=false")
    assert kube.get("pod", "p")["status"]["containerStatuses"][0]["restartCount"] == 0


@pytest.mark.parametrize("kind", ["livenessProbe", "startupProbe"])
def test_a_container_that_fails_its_probe_is_restarted(kube: Kube, kind: str) -> None:
    probe = {"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1}
    kube.apply(pod("p", container(SLEEP, **{kind: probe})))
    kube.wait("pod/p", "jsonpath={.status.containerStatuses[0].restartCount}=1")
    assert any("Connect call failed" in message for message in kube.events("Unhealthy"))


def test_grpc_and_http_probes_ask_the_pods_own_address(kube: Kube) -> None:
    http = {"httpGet": {"path": "/", "port": "main"}, "periodSeconds": 1, "timeoutSeconds": 5}
    web = container(
        image="registry.example.com/understudy:1",
        command=["python", "-m", "http.server", "$(PORT)"],
        env=[{"name": "PORT", "value": "8080"}],
        ports=[{"name": "main", "containerPort": 8080}],
        readinessProbe=http,
    )
    script = (
        "from concurrent.futures import ThreadPoolExecutor; import grpc;"
        "from grpc_health.v1 import health, health_pb2_grpc as s;"
        "server = grpc.server(ThreadPoolExecutor(2)); servicer = health.HealthServicer();"
        "s.add_HealthServicer_to_server(servicer, server);"
        "server.add_insecure_port('0.0.0.0:9000'); server.start(); server.wait_for_termination()"
    )
    rpc = container(
        name="rpc",
        image="understudy",
        command=["python", "-c", script],
        readinessProbe={"grpc": {"port": 9000}, "periodSeconds": 1, "timeoutSeconds": 5},
    )
    kube.apply(pod("p", web, rpc))
    kube.wait("pod/p", "condition=Ready")


def test_a_crashing_container_is_restarted_and_then_held_back(kube: Kube, state: Path) -> None:
    kube.apply(pod("p", container("echo crash; exit 3")))
    reason = "{.status.containerStatuses[0].state.waiting.reason}"
    kube.wait("pod/p", f"jsonpath={reason}=CrashLoopBackOff")
    found = kube.get("pod", "p")
    status = found["status"]["containerStatuses"][0]
    assert status["restartCount"] >= 2
    assert status["lastState"]["terminated"]["exitCode"] == 3
    assert log_of(state, found, start=1) == "crash\n"


def test_a_pod_is_stopped_in_order_within_its_grace(kube: Kube, state: Path) -> None:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]
    mounts = [{"name": "data", "mountPath": "/data"}]
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo preStop >> /data/log"]}}}
    trap = "trap 'echo {0} >> /data/log; exit 0' TERM; touch /data/{0}; sleep 600 & wait; wait"
    main = container(trap.format("main"), lifecycle=hook, volumeMounts=mounts)
    side = container(trap.format("side"), name="side", restartPolicy="Always", volumeMounts=mounts)
    kube.apply(claim("c"), pod("p", main, initContainers=[side], volumes=volumes))
    folder = state / "claims" / kube.get("pvc", "c")["metadata"]["uid"]
    wait_until(lambda: (folder / "main").exists(), "the main container to run")
    kube.run("delete", "pod", "p", "--wait=true")
    assert (folder / "log").read_text() == "preStop\nmain\nside\n"


def test_a_container_that_ignores_sigterm_is_killed_after_the_grace(kube: Kube) -> None:
    kube.apply(pod("p", container("trap '' TERM; sleep 600"), terminationGracePeriodSeconds=1))
    kube.wait("pod/p", "condition=Ready")
    kube.run("delete", "pod", "p", "--wait=true", "--timeout=30s")


def test_a_job_runs_until_it_succeeds(kube: Kube) -> None:
    script = "test -e /data/tried && exit 0; touch /data/tried; exit 1"
    template = pod(
        "unused",
        container(script, volumeMounts=[{"name": "data", "mountPath": "/data"}]),
        restartPolicy="Never",
        volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}],
    )
    spec = {"backoffLimit": 3, "template": {"spec": template["spec"]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": spec}
    kube.apply(claim("c"), job)
    kube.wait("job/j", "condition=Complete")
    assert kube.get("job", "j")["status"]["failed"] == 1


def test_a_projected_token_speaks_for_the_pods_account(kube: Kube, state: Path) -> None:
    script = (
        "import json, ssl, urllib.request as u, urllib.error;"
        "folder = '/var/run/secrets/kubernetes.io/serviceaccount/';"
        "context = ssl.create_default_context(cafile=folder + 'ca.crt');"
        "namespace = open(folder + 'namespace').read();"
        f"url = f'{API}/{{namespace}}/pods';"
        "head = {'Authorization': 'Bearer ' + open(folder + 'token').read()}\n"
        "try: u.urlopen(u.Request(url, headers=head), context=context)\n"
        "except urllib.error.HTTPError as error: print(error.code, error.read().decode())"
    )
    main = container(image="understudy", command=["python", "-c", script])
    kube.apply(pod("p", main, automountServiceAccountToken=True, restartPolicy="Never"))
    kube.wait("pod/p", "jsonpath={.status.phase}=Succeeded")
    log = log_of(state, kube.get("pod", "p"))
    assert log.startswith("403 ")
    account = f"system:serviceaccount:{kube.namespace}:default"
    assert account in json.loads(log.split(" ", 1)[1])["message"]


def test_an_image_that_nothing_stands_in_for_is_named(kube: Kube) -> None:
    kube.apply(pod("p", container(image="nginx:1", securityContext=SECURE)))
    reason = "{.status.containerStatuses[0].state.waiting.reason}"
    kube.wait("pod/p", f"jsonpath={reason}=ErrImagePull")
    assert any("nothing stands in for image 'nginx:1'" in text for text in kube.events("Failed"))
