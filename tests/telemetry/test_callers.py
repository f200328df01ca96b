"""Whom services let call them: the edges of the schema, no more and no less."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

from deploy.certificates import COMPONENTS
from deploy.telemetry.schema import Schema

ROOT = Path(__file__).resolve().parents[2]
OVER_HTTP = {("controller", "router"), ("prometheus", "router")}
"""Edges that lead to a port of metrics only."""
GUARDED = ("attention", "controller", "distiller", "experts", "kvstore")


def callers_of(schema: Schema, service: str) -> set[str]:
    edges = {(edge.source, edge.target) for edge in schema.edges} - OVER_HTTP
    return {source for source, target in edges if target == service and source in COMPONENTS}


@pytest.mark.parametrize("service", GUARDED)
def test_callers_are_those_of_the_schema(schema: Schema, service: str) -> None:
    callers = import_module(f"services.{service}.servicer").CALLERS
    assert set(callers) == callers_of(schema, service)
    assert len(callers) == len(set(callers))


def test_only_outsiders_call_the_router(schema: Schema) -> None:
    assert callers_of(schema, "router") == {"caller"}


def test_components_with_certificates_are_the_services_and_outside_callers(schema: Schema) -> None:
    folders = {path.parent.name for path in ROOT.glob("services/*/__main__.py")}
    assert set(COMPONENTS) == folders | {"caller"}


@pytest.mark.parametrize("service", [*GUARDED, "router"])
def test_each_service_tells_the_chassis_who_may_call(service: str) -> None:
    tree = ast.parse((ROOT / "services" / service / "__main__.py").read_text("utf-8"))
    [call] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "serve"
    ]
    stated = {word.arg: ast.unparse(word.value) for word in call.keywords}
    assert stated["callers"] == ("ANYONE" if service == "router" else "CALLERS")
