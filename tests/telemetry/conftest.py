"""The schema, and spans recorded while services run in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deploy.telemetry.schema import Schema, load_schema
from tests.contract.router.conftest import town as town  # a fixture, re-exported
from tests.telemetry.tools import tool

TRACED_MODULES = (
    "services.router.conductor",
    "services.router.tries",
    "services.router.clients.openai",
    "services.experts.spans",
    "understudy.serving.running",
)


@pytest.fixture(scope="session")
def schema() -> Schema:
    return load_schema()


@pytest.fixture
def provider() -> Iterator[TracerProvider]:
    made = TracerProvider(shutdown_on_exit=False)
    yield made
    made.shutdown()


@pytest.fixture
def exporter(
    provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> Iterator[InMemorySpanExporter]:
    """Every span that services in this process finish."""
    memory = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    for module in TRACED_MODULES:
        monkeypatch.setattr(f"{module}.tracer", provider.get_tracer)
    return memory


@pytest.fixture(scope="session")
def promtool() -> Path:
    return tool("promtool")
