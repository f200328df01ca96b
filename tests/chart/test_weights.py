"""Weights that a Job fetches: the Job, who waits for it, and the paths that lead to them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.chart.manifests import (
    CHART,
    Helm,
    Manifest,
    RenderError,
    containers_of,
    environment_of,
    jobs,
    named,
    pod_of,
    workloads,
)
from tests.chart.network import Network, Pod
from tests.unit.weights.store_server import StoreServer, serving
from understudy.weights.__main__ import BAD_SETTINGS, REFUSED
from understudy.weights.settings import FetchSettings, ModelSource

VALUES: Final = CHART / "ci" / "fetched-values.yaml"
INTERNET: Final = Pod("internet", "", address="203.0.113.9")
DIGESTS: Final = tuple(f"sha256:{digit * 64}" for digit in "01")


@pytest.fixture(scope="module")
def fetched(helm: Helm) -> list[Manifest]:
    return helm.render([VALUES])


def _sources(manifests: list[Manifest]) -> tuple[ModelSource, ...]:
    """What the Job reads, as the Job itself reads it."""
    [job] = jobs(manifests)
    [volume] = [one["configMap"] for one in pod_of(job)["volumes"] if one["name"] == "models"]
    text = named(manifests, "ConfigMap", volume["name"])["data"]["models.json"]
    [container] = pod_of(job)["containers"]
    environment = {**environment_of(container), "UNDERSTUDY_WEIGHTS_MODELS": text}
    return FetchSettings.from_env(environment).sources()


def _awaited(manifests: list[Manifest]) -> dict[str, list[str]]:
    """The folders that each workload waits for."""
    return {
        workload["metadata"]["name"]: [
            word for word in container["command"][5:] if not word.startswith("--")
        ]
        for workload in workloads(manifests)
        for container in containers_of(pod_of(workload))
        if container["name"] == "weights"
    }


def test_the_job_accepts_what_the_chart_gives_it(fetched: list[Manifest]) -> None:
    sources = {one.folder.rpartition("-")[0]: one for one in _sources(fetched)}
    assert {name: one.source for name, one in sources.items()} == {
        "llm": "s3://models/moe/",
        "slm": "hub://example/slm@0123456789abcdef0123456789abcdef01234567/",
        "adapter": "oci://registry.example.com:5000/models/adapter",
        "other": "gs://bucket/other.gguf",
        "copied": "file:///sources/lake/models/copied/",
    }
    assert sources["llm"].max_bytes == 200 * 1024**3
    assert sources["slm"].sums.count("\n") == 2


def test_a_refusal_ends_the_job_and_anything_else_is_tried_again(fetched: list[Manifest]) -> None:
    [job] = jobs(fetched)
    [rule] = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    codes = rule["onExitCodes"]
    [container] = pod_of(job)["containers"]
    assert (codes["containerName"], codes["operator"]) == (container["name"], "In")
    assert set(codes["values"]) == {BAD_SETTINGS, REFUSED}
    # With pauses of at most 10 minutes the deadline comes first, even where it is a year.
    assert job["spec"]["backoffLimit"] > job["spec"]["activeDeadlineSeconds"]


def test_credentials_are_mounted_from_their_secrets_and_stand_nowhere(
    fetched: list[Manifest],
) -> None:
    [job] = jobs(fetched)
    pod = pod_of(job)
    secrets = {
        one["secret"]["secretName"]: one["name"] for one in pod["volumes"] if "secret" in one
    }
    assert secrets.keys() == {"bucket", "hub"}
    mounts = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
    places = {str(one.credentials) for one in _sources(fetched) if one.credentials}
    assert places == {mounts[volume] for volume in secrets.values()}


def test_workers_wait_for_what_they_read_and_for_nothing_else(fetched: list[Manifest]) -> None:
    folder = {one.folder.rpartition("-")[0]: one.folder for one in _sources(fetched)}
    assert _awaited(fetched) == {
        "demo-understudy-router": [folder["slm"]],
        "demo-understudy-slm-attention": [folder["slm"]],
        "demo-understudy-llm-attention": sorted([folder["adapter"], folder["llm"]]),
        "demo-understudy-llm-experts": [folder["llm"]],
    }


def test_paths_of_fetched_weights_lie_in_their_folders(fetched: list[Manifest]) -> None:
    folder = {one.folder.rpartition("-")[0]: f"/models/{one.folder}" for one in _sources(fetched)}

    def environment(kind: str, name: str) -> dict[str, str]:
        return environment_of(pod_of(named(fetched, kind, name))["containers"][0])

    attention = environment("StatefulSet", "demo-understudy-llm-attention")
    assert attention["UNDERSTUDY_ATTENTION_MODEL"] == folder["llm"]
    adapters = attention["UNDERSTUDY_ATTENTION_ADAPTERS"].split(",")
    assert adapters == ["mine=/models/mine", f"snips-tools={folder['adapter']}"]
    experts = environment("StatefulSet", "demo-understudy-llm-experts")
    assert experts["UNDERSTUDY_EXPERTS_MODEL"] == folder["llm"]
    router = environment("Deployment", "demo-understudy-router")
    assert router["UNDERSTUDY_ROUTER_TOKENIZER"] == f"{folder['slm']}/tokenizer.json"
    pools = json.loads(router["UNDERSTUDY_ROUTER_POOLS"])
    assert [one["version_dir"] for one in pools] == [folder["slm"], ""]


def _model(**changes: object) -> dict[str, object]:
    fields = {"name": "m", "source": "s3://b/k/", "digest": DIGESTS[0], "maxGib": 1}
    return {key: value for key, value in {**fields, **changes}.items() if value is not None}


def _pools(model: str) -> list[dict[str, object]]:
    return [{"name": "llm", "modelName": "m", "model": model, "ffn": "fused"}]


def _render(helm: Helm, *models: dict[str, object], pool: str = "weights:m") -> list[Manifest]:
    return helm.render(values={"weights.models": list(models), "pools": _pools(pool)})


def test_what_is_fetched_decides_the_folder_and_how_it_is_fetched_the_job(helm: Helm) -> None:
    first, elsewhere, other = (
        _render(helm, model)
        for model in (_model(), _model(source="gs://b/k/"), _model(digest=DIGESTS[1]))
    )
    folders = [_sources(one)[0].folder for one in (first, elsewhere, other)]
    assert folders[0] == folders[1] != folders[2]
    names = {jobs(one)[0]["metadata"]["name"] for one in (first, elsewhere, other)}
    assert len(names) == 3


@pytest.mark.parametrize(
    "values",
    [
        {"serving.drainGraceS": 77},
        {"image.pullPolicy": "Always"},
        {"image.tag": "2"},
        {"weights.job.deadlineS": 77},
        {"imagePullSecrets": [{"name": "registry"}]},
    ],
)
def test_a_job_that_differs_has_another_name(
    helm: Helm, fetched: list[Manifest], values: dict[str, object]
) -> None:
    [job], [other] = jobs(fetched), jobs(helm.render([VALUES], values))
    assert (job["spec"] == other["spec"]) is (job["metadata"]["name"] == other["metadata"]["name"])
    assert (job["spec"] == other["spec"]) is ("serving.drainGraceS" in values)


def test_the_same_values_are_the_same_job(helm: Helm, fetched: list[Manifest]) -> None:
    assert jobs(helm.render([VALUES])) == jobs(fetched)


@pytest.mark.parametrize(
    ("models", "pool", "words"),
    [
        ([_model()], "weights:other", "names no entry of weights.models"),
        ([_model(), _model()], "weights:m", "twice"),
        (
            [_model(source="oci://r/m", digest=None, sums="x")],
            "weights:m",
            "digest of its manifest",
        ),
        ([_model(sums="x")], "weights:m", "models"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_rendered(
    helm: Helm, models: list[dict[str, object]], pool: str, words: str
) -> None:
    with pytest.raises(RenderError, match=words):
        _render(helm, *models, pool=pool)


def test_a_claim_of_yours_takes_what_is_fetched(helm: Helm) -> None:
    values = {"weights.existingClaim": "mine", "weights.models": [_model()]}
    manifests = helm.render(values=values)
    assert not [
        one
        for one in manifests
        if one["kind"] == "PersistentVolumeClaim" and "weights" in one["metadata"]["name"]
    ]
    [job] = jobs(manifests)
    claims = [one.get("persistentVolumeClaim") for one in pod_of(job)["volumes"]]
    assert {"claimName": "mine"} in claims


@pytest.mark.parametrize(
    ("credentials", "ports"), [({}, {9000}), ({"credentialsSecret": "s"}, {443, 9000})]
)
def test_a_source_with_credentials_may_be_asked_for_a_token_at_443(
    helm: Helm, credentials: dict[str, str], ports: set[int]
) -> None:
    model = {"name": "m", "source": "gs://b/k/", "digest": f"sha256:{'0' * 64}", "maxGib": 1}
    model = {**model, "endpoint": "https://store:9000", **credentials}
    manifests = helm.render(values={"weights.models": [model]})
    [job] = jobs(manifests)
    fetcher = Pod("weights", labels=job["spec"]["template"]["metadata"]["labels"])
    network = Network.of(manifests)
    assert {port for port in (80, 443, 9000) if network.lets_out(fetcher, INTERNET, port)} == ports


def test_without_models_there_is_no_job(defaults: list[Manifest], external: list[Manifest]) -> None:
    assert not [*jobs(defaults), *jobs(external), *_awaited(external)]


def test_the_rendered_job_fetches_and_the_rendered_init_container_then_lets_its_worker_start(
    helm: Helm, tmp_path: Path
) -> None:
    content = b"weights" * 1000
    sums = f"{hashlib.sha256(content).hexdigest()}  model.gguf\n"
    volume, models = tmp_path / "volume", tmp_path / "models.json"
    volume.mkdir()
    with serving(StoreServer(files={"/b/k/model.gguf": content})) as store:
        model = _model(digest=None, sums=sums, endpoint=store.address)
        manifests = _render(helm, model, pool="weights:m/model.gguf")
        [job] = jobs(manifests)
        [configuration] = [one for one in manifests if one["kind"] == "ConfigMap"]
        models.write_text(configuration["data"]["models.json"])
        settings = {"MODELS": f"@{models}", "DIRECTORY": str(volume)}
        environment = {f"UNDERSTUDY_WEIGHTS_{name}": value for name, value in settings.items()}
        _run(pod_of(job)["containers"][0], environment)
    worker = pod_of(named(manifests, "StatefulSet", "demo-understudy-llm-attention"))
    _run(worker["initContainers"][0], {"/weights": str(volume)})
    path = environment_of(worker["containers"][0])["UNDERSTUDY_ATTENTION_MODEL"]
    assert (volume / Path(path).relative_to("/weights")).read_bytes() == content


def _run(container: Any, environment: dict[str, str]) -> None:
    """Run a container's command here, with paths of its volume replaced."""
    command = [environment.get(word, word) for word in container["command"]]
    done = subprocess.run(
        [sys.executable, *command[1:]],
        env={"PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
