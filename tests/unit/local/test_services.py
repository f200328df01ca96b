"""The table of processes: what each is told of the others."""

import json
from pathlib import Path

import pytest

from services.attention.settings import AttentionSettings
from services.controller.settings import ControllerSettings
from services.distiller.settings import DistillerSettings
from services.experts.settings import ExpertsSettings
from services.kvstore.settings import KvStoreSettings
from services.router.settings import RouterSettings
from understudy.errors import FailedPrecondition
from understudy.local import services
from understudy.local.models import LocalModels
from understudy.local.services import Launch, platform_services
from understudy.local.settings import LocalSettings
from understudy.local.site import Site
from understudy.local.traces.settings import TracesSettings
from understudy.local.triton.settings import TritonSettings
from understudy.serving import ServingSettings

READERS = {
    "kvstore": KvStoreSettings,
    "experts": ExpertsSettings,
    "controller": ControllerSettings,
    "attention": AttentionSettings,
    "distiller": DistillerSettings,
    "router": RouterSettings,
}


def site(run_dir: Path, **changes) -> Site:
    settings = LocalSettings(run_dir=run_dir, **changes)
    models = LocalModels(
        llm="/models/llm.gguf",
        adapters=("snips-tools=/models/adapter.safetensors",),
        slm=Path("/models/slm"),
        slm_name="own-slm",
        tokenizer=Path("/models/slm/tokenizer.json"),
    )
    for name in ("journal.key", "tenant.secret"):
        (run_dir / name).write_text("")
    return Site(Path("/root"), run_dir, settings, models, http_port=8081)


@pytest.fixture
def launches(tmp_path: Path) -> dict[str, Launch]:
    table = platform_services(site(tmp_path))
    ports = {service.name: 4000 + index for index, service in enumerate(table)}
    return {service.name: service.launch(ports, 0) for service in table}


def test_every_service_of_the_design_is_there(launches: dict[str, Launch]) -> None:
    assert set(launches) == {
        *("redis-kv", "redis-control", "traces", "kvstore", "kernels", "experts-0", "experts-1"),
        *("controller", "attention-slm", "attention-llm", "distiller", "router"),
    }


def test_needs_come_before_those_who_need_them(tmp_path: Path) -> None:
    seen: set[str] = set()
    for service in platform_services(site(tmp_path)):
        assert set(service.needs) <= seen
        seen.add(service.name)


@pytest.mark.parametrize("package", READERS)
def test_every_service_accepts_what_it_is_told(package: str, launches: dict[str, Launch]) -> None:
    ours = [launch for launch in launches.values() if launch.argv[-1] == f"services.{package}"]
    assert ours
    for launch in ours:
        READERS[package].from_env(launch.environ)
        serving = ServingSettings.from_env(launch.environ)
        assert serving.otlp_endpoint == "http://127.0.0.1:4002"
        assert serving.ready_file is not None


def test_the_trace_store_accepts_what_it_is_told(launches: dict[str, Launch]) -> None:
    told = launches["traces"].environ
    traces = TracesSettings.from_env(told)
    assert traces.listen == "127.0.0.1:0"
    assert str(traces.path) == told["UNDERSTUDY_TRACES_PATH"]
    assert str(traces.ready_file) == told["UNDERSTUDY_TRACES_READY_FILE"]


def test_the_llm_is_disaggregated_and_the_slm_is_not(launches: dict[str, Launch]) -> None:
    llm = AttentionSettings.from_env(launches["attention-llm"].environ)
    slm = AttentionSettings.from_env(launches["attention-slm"].environ)
    assert (llm.ffn, llm.placement, llm.pool) == ("remote", "127.0.0.1:4007", "llm")
    assert (slm.ffn, slm.pool, slm.model_name) == ("fused", "slm", "own-slm")
    assert list(llm.adapter_paths()) == ["snips-tools"]


def test_kernels_are_compiled_once_before_any_worker_starts(tmp_path: Path) -> None:
    table = {service.name: service for service in platform_services(site(tmp_path))}
    assert table["kernels"].ready == "exit"
    for name in ("experts-0", "experts-1", "attention-slm", "attention-llm"):
        assert "kernels" in table[name].needs


def test_the_controller_knows_both_expert_workers(launches: dict[str, Launch]) -> None:
    pools = json.loads(launches["controller"].environ["UNDERSTUDY_CONTROLLER_POOLS"])
    assert pools == [{"pool": "llm", "replicas": ["127.0.0.1:4005", "127.0.0.1:4006"]}]


def test_the_router_knows_the_controller(launches: dict[str, Launch]) -> None:
    told = RouterSettings.from_env(launches["router"].environ)
    assert told.controllers == ("127.0.0.1:4007",)


def test_the_router_keeps_its_ports_and_a_restarted_worker_its_own(tmp_path: Path) -> None:
    table = {service.name: service for service in platform_services(site(tmp_path))}
    ports = {name: 4000 + index for index, name in enumerate(table)}
    router = table["router"].launch(ports, 0)
    assert (router.environ["UNDERSTUDY_SERVING_LISTEN"], router.http_port) == (
        "127.0.0.1:9090",
        8081,
    )
    again = table["experts-0"].launch(ports, 4004)
    assert again.environ["UNDERSTUDY_SERVING_LISTEN"] == "127.0.0.1:4004"


def test_a_triton_server_stands_behind_the_expert_workers_where_one_is_wanted(
    tmp_path: Path,
) -> None:
    table = {service.name: service for service in platform_services(site(tmp_path, triton=True))}
    ports = {name: 4000 + index for index, name in enumerate(table)}
    told = TritonSettings.from_env(table["triton"].launch(ports, 0).environ)
    assert (told.model, told.directory) == ("/models/llm.gguf", tmp_path / "triton")
    for name in ("experts-0", "experts-1"):
        assert "triton" in table[name].needs
        experts = ExpertsSettings.from_env(table[name].launch(ports, 0).environ)
        assert (experts.executor, experts.triton) == ("triton", f"127.0.0.1:{ports['triton']}")


def test_an_external_llm_replaces_the_workers_of_its_own(tmp_path: Path) -> None:
    pool = {"urls": ["http://vllm:8000/v1"], "model": "m", "position_parameters": 7}
    table = {
        service.name: service
        for service in platform_services(site(tmp_path, llm_pool=json.dumps(pool)))
    }
    assert not {"experts-0", "experts-1", "controller", "attention-llm"} & set(table)
    ports = {name: 4000 + index for index, name in enumerate(table)}
    assert all(set(service.needs) <= set(table) for service in table.values())
    told = RouterSettings.from_env(table["router"].launch(ports, 0).environ)
    slm, llm = told.parsed_pools()
    assert (slm.name, slm.external) == ("slm", None)
    assert llm.external is not None
    assert llm.external.urls == ("http://vllm:8000/v1",)
    assert told.controllers == ()


def test_redis_servers_of_the_users_are_not_started(tmp_path: Path) -> None:
    kv, control = "redis://kv:6379/0", "redis://control:6379/0"
    table = platform_services(site(tmp_path, kv_redis=kv, control_redis=control))
    ports = {service.name: 4000 for service in table}
    assert not any(service.name.startswith("redis") for service in table)
    launches = {service.name: service.launch(ports, 0) for service in table}
    assert launches["kvstore"].environ["UNDERSTUDY_KVSTORE_REDIS_URL"] == kv
    assert launches["router"].environ["UNDERSTUDY_ROUTER_CONTROL_REDIS"] == control


def test_the_two_valkeys_differ_in_what_they_may_lose(launches: dict[str, Launch]) -> None:
    kv, control = launches["redis-kv"].argv, launches["redis-control"].argv
    assert kv[kv.index("--maxmemory-policy") + 1] == "allkeys-lfu"
    assert control[control.index("--maxmemory-policy") + 1] == "noeviction"
    assert control[control.index("--appendonly") + 1] == "yes"


def test_a_missing_valkey_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "find_spec", lambda _: None)
    with pytest.raises(FailedPrecondition, match="UNDERSTUDY_LOCAL_KV_REDIS"):
        services.valkey_binary()
