"""Pools behind engines of somebody else: what the router is told, what is not started for them."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from services.router.settings import RouterSettings
from tests.chart.manifests import (
    CHART,
    Helm,
    Manifest,
    RenderError,
    environment_of,
    named,
    pod_of,
    workloads,
)
from tests.chart.network import Network, Pod, pods_of

PREFIX: Final = "demo-understudy"
PRESET: Final = CHART / "values-external-engines.yaml"
ENGINE: Final = {
    "urls": ["https://engine:8443/v1"],
    "model": "m",
    "positionParameters": 31_000_000_001,
}
REDIS: Final = ("redis-kv", "redis-control")
NATIVE: Final = {"modelName": "m", "model": "smollm2", "ffn": "fused"}


@pytest.fixture(scope="module")
def external_llm(helm: Helm) -> list[Manifest]:
    return helm.render([PRESET])


def _settings(manifests: list[Manifest]) -> RouterSettings:
    """The router's settings, as it reads them from its environment."""
    [container] = pod_of(named(manifests, "Deployment", f"{PREFIX}-router"))["containers"]
    variables = environment_of(container).items()
    ours = {name: value for name, value in variables if name.startswith("UNDERSTUDY_ROUTER_")}
    secrets = {
        "UNDERSTUDY_ROUTER_API_KEYS": "[]",
        "UNDERSTUDY_ROUTER_JOURNAL_KEY": "",
        "UNDERSTUDY_ROUTER_TENANT_SECRET": "",
    }
    return RouterSettings.from_env({**ours, **secrets})


def _pools(**pools: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, **values} for name, values in pools.items()]


def test_the_router_reads_what_the_values_say_of_engines(external_llm: list[Manifest]) -> None:
    pools = {pool.name: pool for pool in _settings(external_llm).parsed_pools()}
    assert pools["slm"].external is None
    engine = pools["llm"].external
    assert engine is not None
    assert engine.urls == ("https://vllm.models.svc:8000/v1",)
    assert (engine.model, engine.position_parameters) == ("Qwen/Qwen3-32B", 31_978_000_000)


def test_every_setting_of_an_engine_reaches_the_router(helm: Helm) -> None:
    more = {"maxContextTokens": 32768, "logprobs": True, "connectTimeoutS": 2.5, "idleTimeoutS": 90}
    slm = {"versionDir": "/models/v", "external": {**ENGINE, **more}}
    manifests = helm.render(values={"pools": _pools(slm=slm, llm={"external": ENGINE})})
    slm_pool, llm_pool = _settings(manifests).parsed_pools()
    assert slm_pool.version_dir == Path("/models/v")
    engine = slm_pool.external
    assert engine is not None and llm_pool.external is not None
    assert (engine.max_context_tokens, engine.logprobs) == (32768, True)
    assert (engine.connect_timeout_s, engine.idle_timeout_s) == (2.5, 90)
    assert llm_pool.external.position_parameters == 31_000_000_001


def test_key_and_authority_are_mounted_where_the_router_reads_them(
    external_llm: list[Manifest],
) -> None:
    [engine] = [pool.external for pool in _settings(external_llm).parsed_pools() if pool.external]
    pod = pod_of(named(external_llm, "Deployment", f"{PREFIX}-router"))
    [container] = pod["containers"]
    volumes = {one["name"]: one for one in pod["volumes"]}
    mounts = {one["mountPath"]: volumes[one["name"]] for one in container["volumeMounts"]}
    assert engine.key_file is not None and engine.ca_file is not None
    secret = mounts[str(engine.key_file.parent)]["secret"]
    assert secret["secretName"] == "engine-key"
    assert secret["items"] == [{"key": "api-key", "path": engine.key_file.name}]
    authority = mounts[str(engine.ca_file.parent)]["configMap"]
    assert authority["name"] == "engine-ca"
    assert authority["items"] == [{"key": "ca.crt", "path": engine.ca_file.name}]


def test_nothing_of_an_external_pool_runs_here(external_llm: list[Manifest]) -> None:
    names = {one["metadata"]["name"] for one in external_llm if one["kind"] != "Secret"}
    assert not [name for name in names if "-llm" in name]
    assert {one["metadata"]["name"] for one in workloads(external_llm)} == {
        f"{PREFIX}-{name}"
        for name in (
            "router",
            "controller",
            "distiller",
            "slm-attention",
            "redis-kv",
            "redis-control",
        )
    }


def test_without_any_pool_here_there_is_no_tokenizer_and_no_redis_for_kv(helm: Helm) -> None:
    manifests = helm.render(values={"pools": _pools(llm={"external": ENGINE})})
    assert _settings(manifests).tokenizer is None
    names = {one["metadata"]["name"] for one in workloads(manifests)}
    assert f"{PREFIX}-redis-kv" not in names
    assert f"{PREFIX}-redis-control" in names
    policies = {one["metadata"]["name"] for one in manifests if one["kind"] == "NetworkPolicy"}
    assert f"{PREFIX}-redis-kv" not in policies


def test_routers_reach_engines_on_their_ports_where_they_are_and_nobody_else_does(
    external_llm: list[Manifest], helm: Helm
) -> None:
    engine = Pod("vllm", "models")
    elsewhere = Pod("elsewhere", "", address="203.0.113.9")
    ports = (80, 443, 8000, 8443)

    def reached(manifests: list[Manifest], target: Pod) -> dict[str, set[int]]:
        network = Network.of(manifests)
        return {
            pod.labels["app.kubernetes.io/component"]: found
            for pod in pods_of(manifests)
            if (found := {port for port in ports if network.lets_out(pod, target, port)})
        }

    assert reached(external_llm, engine) == {"router": {8000}}
    assert reached(external_llm, elsewhere) == {}
    urls = ["http://a/v1", "https://b/v1", "https://c:8443/v1"]
    pools = _pools(llm={"external": {**ENGINE, "urls": urls}})
    assert reached(helm.render(values={"pools": pools}), elsewhere) == {"router": {80, 443, 8443}}


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        ({"llm": {}}, "needs modelName, model and ffn, or external.urls"),
        ({"llm": {**NATIVE, "external": ENGINE}}, '"llm" is external and has modelName'),
        ({"llm": {"external": {"urls": ["https://e/v1"]}}}, "needs external.model"),
        ({"llm": {"external": {**ENGINE, "urls": ["https://u:p@e/v1"]}}}, "urls"),
        ({"llm": {"external": {**ENGINE, "apiKey": "hush"}}}, "apiKey"),
        ({"llm": {"external": {**ENGINE, "apiKeySecret": {"key": "k", "value": "hush"}}}}, "value"),
    ],
)
def test_pools_that_are_neither_here_nor_there_are_refused(
    helm: Helm, pools: dict[str, dict[str, Any]], words: str
) -> None:
    with pytest.raises(RenderError, match=words):
        helm.render(values={"pools": _pools(**pools)})


def test_an_external_pool_cannot_be_sized(helm: Helm) -> None:
    values = {"pools": _pools(slm=NATIVE, llm={"external": ENGINE}), "scaling.enabled": True}
    with pytest.raises(RenderError, match='"llm", which is none of pools that run here'):
        helm.render(values=values)
    sized = {**values, "scaling.pools": [{"name": "slm"}]}
    assert json.dumps(helm.render(values=sized)).count("UNDERSTUDY_SCALING_RULES") == 1
