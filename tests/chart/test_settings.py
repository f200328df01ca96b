"""The chart's environment equals the services' settings, both ways, and the services accept it."""

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Final

import pytest

from services.controller.scaling_settings import ScalingSettings
from tests.chart.manifests import CHART, Manifest, environment_of, service_containers
from understudy.serving import ServingSettings

SCALING: Final = "UNDERSTUDY_SCALING_"
SERVICES: Final = ("attention", "controller", "distiller", "experts", "kvstore", "router")


def _settings_of(service: str) -> type[ServingSettings]:
    """The settings class of a service; like the chassis' own it has `from_env`."""
    module = importlib.import_module(f"services.{service}.settings")
    settings: type[ServingSettings]
    [settings] = [
        value for name, value in vars(module).items() if name.lower() == f"{service}settings"
    ]
    return settings


def _variables(prefix: str, settings: type[ServingSettings | ScalingSettings]) -> set[str]:
    return {f"{prefix}{field.name.upper()}" for field in fields(settings)}


def _container_of(section: str) -> str:
    """The container whose variables a section of values makes."""
    return "controller" if section == "scaling" else section


def _environments(manifests: list[Manifest], service: str) -> list[Mapping[str, str]]:
    return [
        environment_of(container)
        for container in service_containers(manifests)
        if container["name"] == service
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_the_variables_of_a_container_are_the_settings_of_its_service(
    manifests: list[Manifest], service: str
) -> None:
    expected = _variables("UNDERSTUDY_SERVING_", ServingSettings) | _variables(
        f"UNDERSTUDY_{service.upper()}_", _settings_of(service)
    )
    if service == "controller":
        expected |= _variables(SCALING, ScalingSettings)
    for environment in _environments(manifests, service):
        assert environment.keys() == expected


def test_the_default_chart_has_a_container_of_every_service(defaults: list[Manifest]) -> None:
    assert {container["name"] for container in service_containers(defaults)} == set(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_accepts_the_environment_of_its_container(
    manifests: list[Manifest], service: str
) -> None:
    for environment in _environments(manifests, service):
        serving = ServingSettings.from_env(environment)
        assert serving.listen.startswith("0.0.0.0:")
        assert is_dataclass(_settings_of(service).from_env(environment))
        if service == "controller":
            assert is_dataclass(ScalingSettings.from_env(environment))


SCHEMA: Final = json.loads((CHART / "values.schema.json").read_text())["properties"]
BOUNDS: Final = [
    (service, key, rule[bound])
    for service in (*SERVICES, "scaling")
    for key, rule in SCHEMA[service]["properties"]["settings"]["properties"].items()
    for bound in ("minimum", "maximum")
    if bound in rule
]


@pytest.mark.parametrize(("service", "key", "bound"), BOUNDS)
def test_a_service_accepts_the_extremes_that_the_schema_allows(
    defaults: list[Manifest], service: str, key: str, bound: float
) -> None:
    variable = re.sub(r"([A-Z])", r"_\1", key).upper()
    reader = ScalingSettings if service == "scaling" else _settings_of(service)
    environment = dict(_environments(defaults, _container_of(service))[0])
    environment[f"UNDERSTUDY_{service.upper()}_{variable}"] = f"{bound:g}"
    assert is_dataclass(reader.from_env(environment))


def test_no_variable_is_set_twice(manifests: list[Manifest]) -> None:
    for container in service_containers(manifests):
        names = [entry["name"] for entry in container["env"]]
        assert len(names) == len(set(names))


FRACTIONS: Final = [
    (section, field.name)
    for section in (*SERVICES, "scaling")
    for field in fields(ScalingSettings if section == "scaling" else _settings_of(section))
    if field.type in ("float", float)
]


@pytest.mark.parametrize(("section", "name"), FRACTIONS)
def test_the_schema_admits_fractions_where_a_setting_takes_them(section: str, name: str) -> None:
    key = re.sub(r"_([a-z])", lambda found: found[1].upper(), name)
    assert SCHEMA[section]["properties"]["settings"]["properties"][key]["type"] == "number"
