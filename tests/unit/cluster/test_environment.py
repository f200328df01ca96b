"""Environment and command line of containers, as the kubelet resolves them."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.cluster.agent.environment import (
    ConfigError,
    command_line,
    expand,
    field,
    parse_quantity,
    resolve,
    service_variables,
)

POD: dict[str, Any] = {
    "metadata": {"name": "p-0", "namespace": "n", "uid": "u", "labels": {"app": "x"}},
    "spec": {"nodeName": "cpu-0", "serviceAccountName": "a", "enableServiceLinks": False},
    "status": {"podIP": "10.244.1.2"},
}
SECRET = {"kind": "Secret", "data": {"key": base64.b64encode(b"hush").decode()}}
MAP = {"kind": "ConfigMap", "data": {"A": "1", "B": "2"}}


def lookup(kind: str, name: str) -> dict[str, Any] | None:
    return {("Secret", "s"): SECRET, ("ConfigMap", "m"): MAP}.get((kind, name))


def variables(*env: dict[str, Any], **container: Any) -> dict[str, str]:
    return resolve(POD, {"name": "c", "env": list(env), **container}, {"PATH": "/bin"}, lookup, [])


def test_values_come_from_text_secrets_maps_and_fields() -> None:
    found = variables(
        {"name": "TEXT", "value": "$(PATH):$(UNKNOWN):$$(PATH)"},
        {"name": "HUSH", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
        {"name": "ONE", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "A"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    )
    assert found["TEXT"] == "/bin:$(UNKNOWN):$(PATH)"
    assert (found["HUSH"], found["ONE"], found["IP"]) == ("hush", "1", "10.244.1.2")


def test_later_sources_win() -> None:
    source = [{"configMapRef": {"name": "m"}, "prefix": ""}]
    found = variables({"name": "A", "value": "own"}, envFrom=source)
    assert (found["A"], found["B"]) == ("own", "2")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"name": "s", "key": "other"}, "couldn't find key 'other' in Secret 's'"),
        ({"name": "t", "key": "key"}, "couldn't find Secret 't'"),
    ],
)
def test_what_is_missing_is_named(reference: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        variables({"name": "X", "valueFrom": {"secretKeyRef": reference}})


def test_what_is_optional_may_be_missing() -> None:
    reference = {"name": "t", "key": "key", "optional": True}
    assert "X" not in variables({"name": "X", "valueFrom": {"secretKeyRef": reference}})


def test_labels_are_reached_by_key() -> None:
    assert field(POD, "metadata.labels['app']") == "x"
    assert field(POD, "metadata.labels") == 'app="x"'
    with pytest.raises(ConfigError, match="not supported"):
        field(POD, "spec")


def test_resources_are_divided_and_rounded_up() -> None:
    reference = {"resource": "limits.cpu", "divisor": "1"}
    found = variables(
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": reference}},
        resources={"limits": {"cpu": "1500m"}},
    )
    assert found["CPUS"] == "2"


def test_service_links_are_made_unless_the_pod_refuses_them() -> None:
    spec = {"clusterIP": "10.96.1.1", "ports": [{"port": 80, "name": "web"}]}
    service = {"metadata": {"name": "my-app"}, "spec": spec}
    links = service_variables([service, {"metadata": {"name": "h"}, "spec": {"clusterIP": "None"}}])
    assert links == {
        "MY_APP_SERVICE_HOST": "10.96.1.1",
        "MY_APP_SERVICE_PORT": "80",
        "MY_APP_PORT": "tcp://10.96.1.1:80",
        "MY_APP_SERVICE_PORT_WEB": "80",
    }
    assert "MY_APP_PORT" not in resolve(POD, {"name": "c"}, {}, lookup, [service])


@pytest.mark.parametrize(
    ("text", "value"), [("500m", 0.5), ("2Gi", 2 * 2**30), ("1e3", 1000), ("1", 1), ("3k", 3000)]
)
def test_quantities_are_read(text: str, value: float) -> None:
    assert parse_quantity(text) == value


@given(st.text(alphabet="ab$()_", max_size=20))
def test_text_without_known_names_is_only_rid_of_double_dollars(text: str) -> None:
    assert expand(text.replace("$", ""), {}) == text.replace("$", "")
    assert expand(text.replace("$", "$$"), {"a": "!"}) == text


def test_args_alone_follow_the_program_of_the_image() -> None:
    container = {"name": "c", "args": ["--at", "$(X)"]}
    assert command_line(container, ("server",), {"X": "1"}) == ["server", "--at", "1"]
    assert command_line({**container, "command": ["own"]}, ("server",), {})[:2] == ["own", "--at"]
    with pytest.raises(ConfigError, match="'c' names no command"):
        command_line({"name": "c"}, (), {})
