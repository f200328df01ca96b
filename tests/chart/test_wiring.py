"""Services find each other: every address in the environment is one that the chart serves."""

import base64
import hashlib
import json
import re
from typing import Final

import pytest
import yaml

from tests.chart.manifests import (
    CHART,
    Helm,
    Manifest,
    RenderError,
    environment_of,
    named,
    pod_of,
    service_containers,
)

ADDRESS: Final = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)?:\d+")


def _environments(manifests: list[Manifest], service: str) -> list[dict[str, str]]:
    return [
        environment_of(container)
        for container in service_containers(manifests)
        if container["name"] == service
    ]


def _served_addresses(manifests: list[Manifest]) -> set[str]:
    """Return `service:port` of every Service and `pod.service:port` of every StatefulSet's pod."""
    served = set()
    for service in (one for one in manifests if one["kind"] == "Service"):
        name = service["metadata"]["name"]
        served |= {f"{name}:{port['port']}" for port in service["spec"]["ports"]}
    for workload in (one for one in manifests if one["kind"] == "StatefulSet"):
        spec = workload["spec"]
        service = named(manifests, "Service", spec["serviceName"])
        for ordinal in range(spec["replicas"]):
            pod = f"{workload['metadata']['name']}-{ordinal}.{spec['serviceName']}"
            served |= {f"{pod}:{port['port']}" for port in service["spec"]["ports"]}
    return served


def test_every_address_in_the_default_chart_is_served(defaults: list[Manifest]) -> None:
    served = _served_addresses(defaults)
    local = ("0.0.0.0:", "127.0.0.1:", "redis://secret:")
    for container in service_containers(defaults):
        for name, value in environment_of(container).items():
            for address in ADDRESS.findall(value.replace("redis://", "")):
                assert address in served or value.startswith(local), (name, address)


def test_the_router_knows_every_attention_worker_of_every_pool(external: list[Manifest]) -> None:
    [environment] = _environments(external, "router")
    pools = {
        pool["name"]: pool["workers"] for pool in json.loads(environment["UNDERSTUDY_ROUTER_POOLS"])
    }
    assert {name: len(workers) for name, workers in pools.items()} == {
        "slm": 3,
        "llm": 2,
    }
    assert pools["llm"][1] == "stage-llm-attention-1.stage-llm-attention:9000"


def test_pools_of_other_names_are_workers_that_routers_know(helm: Helm) -> None:
    [slm, llm] = yaml.safe_load((CHART / "values.yaml").read_text())["pools"]
    code = {"name": "code", "modelName": "coder", "model": "weights/coder.gguf", "ffn": "fused"}
    manifests = helm.render(values={"pools": [slm, llm, code]})
    [environment] = _environments(manifests, "router")
    known = {
        pool["name"]: pool["workers"] for pool in json.loads(environment["UNDERSTUDY_ROUTER_POOLS"])
    }
    assert known["code"] == ["demo-understudy-code-attention-0.demo-understudy-code-attention:9000"]
    assert named(manifests, "StatefulSet", "demo-understudy-code-attention")
    assert set(known["code"]) <= _served_addresses(manifests)


def test_the_controller_places_the_experts_of_disaggregated_pools_only(
    external: list[Manifest],
) -> None:
    [environment] = _environments(external, "controller")
    [pool] = json.loads(environment["UNDERSTUDY_CONTROLLER_POOLS"])
    assert pool["pool"] == "llm"
    assert pool["replicas"] == [
        f"stage-llm-experts-{ordinal}.stage-llm-experts:9000" for ordinal in range(4)
    ]


def test_only_disaggregated_workers_are_told_of_a_placement(external: list[Manifest]) -> None:
    told = {
        environment["UNDERSTUDY_ATTENTION_POOL"]: (
            environment["UNDERSTUDY_ATTENTION_FFN"],
            environment["UNDERSTUDY_ATTENTION_PLACEMENT"],
        )
        for environment in _environments(external, "attention")
    }
    assert told == {
        "slm": ("fused", ""),
        "llm": ("remote", "stage-controller:9000"),
    }


def test_a_pool_overrides_only_what_it_names(external: list[Manifest]) -> None:
    budgets = {
        environment["UNDERSTUDY_ATTENTION_POOL"]: environment["UNDERSTUDY_ATTENTION_TOKEN_BUDGET"]
        for environment in _environments(external, "attention")
    }
    assert budgets == {"slm": "256", "llm": "512"}
    worker = pod_of(named(external, "StatefulSet", "stage-slm-attention"))
    assert worker["nodeSelector"] == {"accelerator": "h100"}


def test_adapters_are_named_with_their_paths(external: list[Manifest]) -> None:
    environments = _environments(external, "attention")
    adapters = [environment["UNDERSTUDY_ATTENTION_ADAPTERS"] for environment in environments]
    assert adapters == ["", "other=/weights/other,snips-tools=/weights/adapter"]


def test_large_numbers_keep_all_their_digits(external: list[Manifest]) -> None:
    [environment] = _environments(external, "router")
    assert environment["UNDERSTUDY_ROUTER_MAX_BODY_BYTES"] == "16777216"
    assert environment["UNDERSTUDY_ROUTER_MAX_PROMPT_BYTES"] == "1048576"


def test_a_redis_of_your_own_replaces_the_built_in_one(external: list[Manifest]) -> None:
    assert not [one for one in external if "redis" in one["metadata"]["name"]]
    kvstore = _environments(external, "kvstore")[0]
    assert kvstore["UNDERSTUDY_KVSTORE_REDIS_URL"] == "redis://cache.example.com:6379/1"
    router = named(external, "Deployment", "stage-router")
    [entry] = [
        entry
        for entry in pod_of(router)["containers"][0]["env"]
        if entry["name"] == "UNDERSTUDY_ROUTER_CONTROL_REDIS"
    ]
    assert entry["valueFrom"] == {"secretKeyRef": {"name": "control-redis", "key": "url"}}


def test_the_two_built_in_servers_differ_in_eviction_and_persistence(
    defaults: list[Manifest],
) -> None:
    kv, control = (
        pod_of(named(defaults, "StatefulSet", f"demo-understudy-redis-{role}"))["containers"][0]
        for role in ("kv", "control")
    )
    for server in (kv, control):
        # Protected mode would refuse other pods, as long as the default user needs no password.
        mode = server["command"].index("--protected-mode")
        assert server["command"][mode + 1] == "no"
    assert "allkeys-lfu" in kv["command"]
    assert kv["command"][-2:] == ["--appendonly", "no"]
    assert "noeviction" in control["command"]
    assert control["command"][-2:] == ["--appendonly", "yes"]


def test_two_pools_of_one_name_are_refused(helm: Helm) -> None:
    pool = {"name": "llm", "modelName": "m", "model": "smollm2", "ffn": "fused"}
    with pytest.raises(RenderError, match='two pools are named "llm"'):
        helm.render(values={"pools": [pool, pool]})


def test_a_release_name_too_long_for_object_names_is_refused_with_the_remedy(helm: Helm) -> None:
    release = "a-release-with-a-rather-long-name"
    with pytest.raises(RenderError, match="set fullnameOverride to a shorter one"):
        helm.run("template", release, str(CHART))
    assert helm.run("template", release, str(CHART), "--set", "fullnameOverride=short")


def test_the_router_gets_the_digest_of_the_key_that_callers_get(defaults: list[Manifest]) -> None:
    secret = named(defaults, "Secret", "demo-understudy-keys")
    values = {name: base64.b64decode(value) for name, value in secret["data"].items()}
    digest = hashlib.sha256(values["api-key"]).hexdigest()
    assert json.loads(values["api-keys.json"]) == [{"tenant": "default", "sha256": digest}]
    assert len(base64.b64decode(values["journal-key"], validate=True)) == 32
    assert len(values["tenant-secret"]) >= 32


def test_the_router_pod_mounts_exactly_the_keys_it_reads(defaults: list[Manifest]) -> None:
    router = named(defaults, "Deployment", "demo-understudy-router")
    [volume] = [one for one in pod_of(router)["volumes"] if one["name"] == "keys"]
    mounted = {f"@/etc/understudy/keys/{item['path']}" for item in volume["secret"]["items"]}
    [environment] = _environments(defaults, "router")
    read = {value for name, value in environment.items() if value.startswith("@")}
    assert read == mounted
    assert volume["secret"]["secretName"] == "demo-understudy-keys"
