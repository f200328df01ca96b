"""What services declare and what the schema declares: the same, both ways."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN_CONTEXT
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.openmetrics.exposition import generate_latest

from deploy.telemetry.schema import Schema
from understudy.serving.observation import CallObserver, CertificateObserver
from understudy.telemetry import Instruments, exemplar

ROOT = Path(__file__).resolve().parents[2]
SERVICES = sorted(path.parent.name for path in ROOT.glob("services/*/metrics.py"))


@dataclass(frozen=True)
class Declared:
    """A metric as prometheus_client knows it."""

    type: str
    labels: tuple[str, ...]


def registries() -> Iterator[CollectorRegistry]:
    """Yield a registry for every class or function that declares instruments."""
    chassis = CollectorRegistry()
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    CallObserver(tracer, Instruments("serving", chassis), {})
    CertificateObserver(Instruments("serving", chassis))
    yield chassis
    for service in SERVICES:
        module = import_module(f"services.{service}.metrics")
        for name, found in vars(module).items():
            if getattr(found, "__module__", "") != module.__name__ or name.startswith("_"):
                continue
            registry = CollectorRegistry()
            if inspect.isclass(found) and "registry" in inspect.signature(found).parameters:
                found(registry)
            elif inspect.isclass(found) and "on" in vars(found):
                found.on(registry)
            elif inspect.isfunction(found):
                found(registry, list)
            yield registry


def declared() -> dict[str, Declared]:
    """Return every instrument of every service."""
    found: dict[str, Declared] = {}
    for registry in registries():
        for collector in list(registry._collector_to_names):
            assert isinstance(collector, MetricWrapperBase)
            labels = tuple(collector._labelnames)
            assert collector._name not in found, f"{collector._name} is declared twice"
            found[collector._name] = Declared(collector._type, labels)
    return found


def test_every_metric_of_the_code_is_in_the_schema_and_the_other_way_round(schema: Schema) -> None:
    expected = {
        name: Declared(metric.type, tuple(sorted(metric.labels)))
        for name, metric in schema.metrics.items()
    }
    found = {
        name: Declared(one.type, tuple(sorted(one.labels))) for name, one in declared().items()
    }
    assert found == expected


def test_no_service_declares_instruments_outside_its_metrics_module() -> None:
    pattern = re.compile(r"\b(Instruments|Counter|Gauge|Histogram|Summary)\(")
    makers = {
        str(path.relative_to(ROOT))
        for folder in ("services", "understudy")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "metrics.py" and pattern.search(path.read_text())
    } - {"understudy/serving/running.py"}
    # collections.Counter counts elsewhere; prometheus_client's is imported by metrics modules only.
    importing = {path for path in makers if "prometheus_client import" in (ROOT / path).read_text()}
    assert not {
        path
        for path in importing
        if re.search(
            r"prometheus_client import .*\b(Counter|Gauge|Histogram)\b", (ROOT / path).read_text()
        )
    }
    assert not {path for path in makers if "Instruments(" in (ROOT / path).read_text()}


def test_an_exemplar_names_a_sampled_trace_only(provider: TracerProvider) -> None:
    assert exemplar(INVALID_SPAN_CONTEXT) is None
    span = provider.get_tracer("test").start_span("work")
    context = span.get_span_context()
    assert exemplar(context) == {"trace_id": f"{context.trace_id:032x}"}
    span.end()


@pytest.mark.parametrize("is_sampled", [True, False])
def test_durations_of_calls_lead_to_their_traces(
    provider: TracerProvider, *, is_sampled: bool
) -> None:
    registry = CollectorRegistry()
    method = "/package.Service/Method"
    spans = {method: "probe"} if is_sampled else {}
    observer = CallObserver(provider.get_tracer("test"), Instruments("serving", registry), spans)
    with observer.observed(method, {}) as outcome:
        outcome.code = "OK"
    text = generate_latest(registry).decode()
    assert ('# {trace_id="' in text) == is_sampled
