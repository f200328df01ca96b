"""Triton in expert pods: who gets the GPU, what is shared, and the Job that packages the model."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from services.experts.clients import TritonShards
from services.experts.holdings import Holdings
from tests.chart.manifests import (
    CHART,
    Helm,
    Manifest,
    containers_of,
    environment_of,
    jobs,
    named,
    pod_of,
)
from tests.chart.network import Network, Pod, pods_of
from tests.integration.processes import wait_until
from tests.integration.triton_parts import CONFIG, TIMEOUT_S, asked, require_installation
from understudy.local.ports import free_port
from understudy.local.triton.server import server_environment
from understudy.model.safetensors_io import save_model
from understudy.model.weights import load_model, random_weights

PRESET: Final = CHART / "values-generic-gpu.yaml"
WORKER: Final = "demo-understudy-llm-experts"
INTERNET: Final = Pod("internet", "", address="203.0.113.9")


@pytest.fixture(scope="module")
def gpu(helm: Helm) -> list[Manifest]:
    return helm.render([PRESET])


def _pod(manifests: list[Manifest], name: str = WORKER) -> Manifest:
    return pod_of(named(manifests, "StatefulSet", name))


def _container(manifests: list[Manifest], name: str) -> Manifest:
    [found] = [one for one in containers_of(_pod(manifests)) if one["name"] == name]
    return found


def test_the_worker_asks_the_server_in_its_pod_and_shares_memory_with_it(
    gpu: list[Manifest],
) -> None:
    environment = environment_of(_container(gpu, "experts"))
    assert environment["UNDERSTUDY_EXPERTS_TRITON"] == "127.0.0.1:8001"
    assert environment["UNDERSTUDY_EXPERTS_TRITON_SHARED_MEMORY"] == "true"
    for name in ("experts", "triton"):
        mounts = {one["mountPath"]: one["name"] for one in _container(gpu, name)["volumeMounts"]}
        assert mounts["/dev/shm"] == "shared-memory"
    [memory] = [one["emptyDir"] for one in _pod(gpu)["volumes"] if one["name"] == "shared-memory"]
    assert memory == {"medium": "Memory", "sizeLimit": "256Mi"}


def test_the_server_is_reached_by_its_own_pod_only(gpu: list[Manifest]) -> None:
    server = _container(gpu, "triton")
    addresses = [word for word in server["command"] if "-address=" in word]
    assert len(addresses) == 3
    assert all(word.endswith("=127.0.0.1") for word in addresses)
    assert "ports" not in server


def test_the_server_starts_before_its_worker_and_ends_after_it(gpu: list[Manifest]) -> None:
    waits, server = _pod(gpu)["initContainers"]
    assert server["restartPolicy"] == "Always"
    assert "startupProbe" in server
    assert waits["command"][2:5] == ["understudy.weights", "wait", "/packages"]
    assert f"--model-repository=/packages/{waits['command'][5]}" in server["command"]


def test_claimed_devices_are_the_servers_alone(helm: Helm) -> None:
    claims = [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]
    manifests = helm.render([PRESET], {"experts.resourceClaims": claims})
    pod = _pod(manifests)
    assert pod["resourceClaims"] == claims
    held = {one["name"]: one["resources"].get("claims") for one in containers_of(pod)}
    assert held == {"packages": None, "triton": [{"name": "gpu"}], "experts": None}
    [job] = jobs(manifests)
    assert "resourceClaims" not in pod_of(job)


def test_a_server_of_yours_leaves_the_pod_as_it_was(helm: Helm) -> None:
    manifests = helm.render([PRESET], {"experts.settings.triton": "triton.models:8001"})
    assert [one["name"] for one in containers_of(_pod(manifests))] == ["experts"]
    environment = environment_of(_container(manifests, "experts"))
    assert environment["UNDERSTUDY_EXPERTS_TRITON"] == "triton.models:8001"
    assert environment["UNDERSTUDY_EXPERTS_TRITON_SHARED_MEMORY"] == "false"
    assert not jobs(manifests)


def test_packages_are_made_where_workers_run_and_in_their_image(gpu: list[Manifest]) -> None:
    [job] = jobs(gpu)
    pod, worker = pod_of(job), _pod(gpu)
    for key in ("nodeSelector", "tolerations"):
        assert pod[key] == worker[key]
    assert {one["image"] for one in containers_of(pod)} == {_container(gpu, "experts")["image"]}


@pytest.mark.parametrize(
    ("values", "is_same"),
    [
        ({"experts.settings.credits": 9}, True),
        ({"serving.drainGraceS": 77}, True),
        ({"experts.settings.weightsDtype": "bfloat16"}, False),
        ({"experts.settings.layers": "0-3"}, False),
        ({"experts.triton.threads": 2}, False),
        ({"image.tag": "2"}, False),
    ],
)
def test_packages_are_made_again_where_they_would_differ_and_only_there(
    helm: Helm, gpu: list[Manifest], values: Mapping[str, object], is_same: bool
) -> None:
    def folder(manifests: list[Manifest]) -> str:
        return str(_pod(manifests)["initContainers"][0]["command"][5])

    other = helm.render([PRESET], values)
    assert (folder(other) == folder(gpu)) is is_same
    names = [jobs(one)[0]["metadata"]["name"] for one in (gpu, other)]
    assert (names[0] == names[1]) is is_same


def test_each_pod_of_the_job_works_in_a_folder_of_its_own(gpu: list[Manifest]) -> None:
    [job] = jobs(gpu)
    name = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    for container in containers_of(pod_of(job)):
        environment = container["env"]
        written = [word for word in container["command"] if word.startswith("/packages/.")]
        written += [one["value"] for one in environment[1:]]
        assert "$(POD_NAME)" in container["command"]
        assert environment[0] == name
        assert all(one.startswith("/packages/.fetching/made/$(POD_NAME)/") for one in written)
    words = [one["command"] for one in containers_of(pod_of(job))]
    assert [one[3] for one in words] == ["begin", "step", "step", "adopt"]
    assert [one[7] for one in words[1:3]] == ["bundle", "files"]


def test_the_job_that_packages_reaches_nobody(gpu: list[Manifest]) -> None:
    [job] = jobs(gpu)
    network = Network.of(gpu)
    packager = Pod("packages", labels=job["spec"]["template"]["metadata"]["labels"])
    targets = [*pods_of(gpu), INTERNET]
    assert not any(
        network.lets_out(packager, pod, port) for pod in targets for port in (80, 443, 9000)
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_rendered_job_packages_a_model_that_the_rendered_server_computes_with(
    helm: Helm, tmp_path: Path
) -> None:
    installation = require_installation()
    model, volume = tmp_path / "model", tmp_path / "packages"
    volume.mkdir()
    save_model(model, CONFIG, random_weights(CONFIG, seed=7, deviation=0.3))
    pool = {"name": "llm", "modelName": "m", "model": str(model), "ffn": "remote"}
    manifests = helm.render([PRESET], {"pools": [pool]})
    [job] = jobs(manifests)
    for _ in range(2):  # The second Job finds everything there, and makes nothing.
        for container in containers_of(pod_of(job)):
            _run([sys.executable, *_here(container["command"][1:], volume)])
    waits, server = _pod(manifests)["initContainers"]
    _run([sys.executable, *_here(waits["command"][1:], volume)])
    ports = {str(number): str(free_port()) for number in (8000, 8001, 8002)}
    words = [_with_ports(word, ports) for word in _here(server["command"][1:], volume)]
    command = [str(installation.server), f"--backend-directory={installation.backends}", *words]
    probe = server["startupProbe"]["exec"]["command"][-1].replace("8000", ports["8000"])
    holdings = Holdings.take(load_model(model))
    process = subprocess.Popen(
        [*command, "--allow-gpu-metrics=false"],
        env=dict(server_environment()),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    shards = TritonShards(f"127.0.0.1:{ports['8001']}", holdings.package_name, holdings,
                          is_local=True)  # fmt: skip
    try:
        wait_until(lambda: _is_live(probe), "Triton is live", timeout_s=120)
        shards.reload(TIMEOUT_S)
        header, request = asked(load_model(model), 600)
        total = shards.compute(header, request, timeout_s=TIMEOUT_S, traceparent="")
        expected = holdings.compute(header, request)
        assert (total - expected).abs().max() < 1e-4 * expected.abs().max()
    finally:
        shards.close()
        process.terminate()
        process.wait(30)


def _here(command: list[str], volume: Path) -> list[str]:
    here = [word.replace("/packages", str(volume)) for word in command]
    here = [word.replace("$(POD_NAME)", "packages-x1") for word in here]
    return [sys.executable if word == "python" else word for word in here]


def _with_ports(word: str, ports: Mapping[str, str]) -> str:
    name, equals, value = word.partition("=")
    return f"{name}{equals}{ports.get(value, value)}"


def _run(command: list[Any]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def _is_live(probe: str) -> bool:
    return subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode == 0
