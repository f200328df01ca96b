"""A real Prometheus that scrapes a live platform, and what is asked of it."""

from __future__ import annotations

import json
import os
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from deploy.telemetry.rules import RULES
from tests.integration.processes import LOOPBACK, wait_until
from understudy.local.ports import free_port
from understudy.local.processes import Child, child_environment
from understudy.local.state import ServiceState

TIMEOUT_S: Final = 30.0
SCRAPE_INTERVAL: Final = "1s"
NAMESPACE: Final = "local"


@dataclass(frozen=True)
class Server:
    """A Prometheus that runs."""

    url: str

    def ask(self, path: str, **parameters: str) -> dict[str, Any]:
        """Return a whole answer of the API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=TIMEOUT_S) as got:
            answer: dict[str, Any] = json.loads(got.read())
            return answer

    def is_ready(self) -> bool:
        """Say whether it serves."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=TIMEOUT_S) as got:
                return bool(got.status == 200)
        except OSError:
            return False

    def value(self, expression: str) -> float:
        """Return the value of an expression that has one, 0 where there is none yet."""
        result = self.ask("query", query=expression)["data"]["result"]
        return float(result[0]["value"][1]) if result else 0.0


def target(service: ServiceState) -> dict[str, object]:
    """Return a scrape target with the labels that the chart gives."""
    component, _, rest = service.name.partition("-")
    pool = {"attention": rest, "experts": "llm"}.get(component)
    labels = {"component": component, "namespace": NAMESPACE, "pod": service.name}
    address = f"{LOOPBACK}:{service.metrics_port}"
    return {"targets": [address], "labels": {**labels, **({"pool": pool} if pool else {})}}


def settings(services: Iterable[ServiceState]) -> Mapping[str, object]:
    """Return the configuration that scrapes every service that has metrics."""
    return {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": "understudy",
                "static_configs": [target(one) for one in services if one.metrics_port],
            }
        ],
    }


@contextmanager
def running(binary: Path, folder: Path, services: Iterable[ServiceState]) -> Iterator[Server]:
    """Run a Prometheus for as long as the block."""
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(settings(services)), encoding="utf-8")
    command = (
        str(binary),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={LOOPBACK}:{port}",
        "--enable-feature=exemplar-storage",
    )
    child = Child(command, child_environment(os.environ), folder / "prometheus.log")
    server = Server(f"http://{LOOPBACK}:{port}")
    try:
        wait_until(server.is_ready, "Prometheus to be ready")
        yield server
    finally:
        child.kill()
