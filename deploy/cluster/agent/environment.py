"""The environment and command line of a container, resolved as the kubelet does it."""

import base64
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from deploy.cluster.agent.api import Json
from deploy.cluster.layout import API_SERVICE

Lookup = Callable[[str, str], Json | None]
"""Kind (`ConfigMap`, `Secret`) and name within the pod's namespace to the object."""

_REFERENCE: Final = re.compile(r"\$(\$|\(([-._a-zA-Z0-9]+)\))")
_SUFFIXES: Final = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50,
}  # fmt: skip
_QUANTITY: Final = re.compile(r"([0-9.]+(?:[eE][0-9]+)?)([a-zA-Z]*)")


class ConfigError(Exception):
    """A container cannot be made as its specification says; the pod waits with this reason."""

    reason = "CreateContainerConfigError"


class ImageError(ConfigError):
    """Nothing stands in for the image."""

    reason = "ErrImagePull"


def parse_quantity(text: str) -> float:
    """Return a Kubernetes quantity such as `500m` or `2Gi` as a number."""
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in _SUFFIXES:
        raise ConfigError(f"{text!r} is no quantity")
    return float(match[1]) * _SUFFIXES[match[2]]


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace `$(NAME)` where the name is known; `$$` is a dollar sign."""

    def replacement(match: re.Match[str]) -> str:
        return "$" if match[1] == "$" else values.get(match[2], match[0])

    return _REFERENCE.sub(replacement, text)


def field(pod: Json, path: str) -> str:
    """Return the field of a pod that a `fieldRef` names."""
    match = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
    if match is not None:
        return str(pod["metadata"].get(match[1], {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        entries = pod["metadata"].get(path.split(".")[1], {})
        return "\n".join(f'{key}="{value}"' for key, value in sorted(entries.items()))
    if path == "status.podIPs":
        return str(pod["status"].get("podIP", ""))
    if path == "status.hostIPs":
        return str(pod["status"].get("hostIP", ""))
    part, _, name = path.partition(".")
    if part not in ("metadata", "spec", "status") or not name:
        raise ConfigError(f"fieldRef {path!r} is not supported")
    return str(pod[part].get(name, ""))


def service_variables(services: Iterable[Json]) -> dict[str, str]:
    """Return the variables that tell a pod of the Services in its namespace (service links)."""
    values = {}
    for service in services:
        address, ports = service["spec"].get("clusterIP", ""), service["spec"].get("ports", [])
        if address in ("", "None") or not ports:
            continue
        name = service["metadata"]["name"].upper().replace("-", "_")
        values[f"{name}_SERVICE_HOST"] = address
        values[f"{name}_SERVICE_PORT"] = str(ports[0]["port"])
        values[f"{name}_PORT"] = f"tcp://{address}:{ports[0]['port']}"
        for port in ports:
            if port.get("name"):
                key = port["name"].upper().replace("-", "_")
                values[f"{name}_SERVICE_PORT_{key}"] = str(port["port"])
    return values


def resolve(
    pod: Json, container: Json, image: Mapping[str, str], lookup: Lookup, links: Iterable[Json]
) -> dict[str, str]:
    """Return all variables of a container; later sources win, as in Kubernetes."""
    values = dict(image)
    values["HOSTNAME"] = pod["spec"].get("hostname", pod["metadata"]["name"])
    values["KUBERNETES_SERVICE_HOST"] = API_SERVICE
    values["KUBERNETES_SERVICE_PORT"] = "443"
    if pod["spec"].get("enableServiceLinks", True):
        values.update(service_variables(links))
    for source in container.get("envFrom", []):
        prefix = source.get("prefix", "")
        for key, value in _all_of(source, lookup).items():
            values[prefix + key] = value
    for variable in container.get("env", []):
        found = _value(pod, container, variable, values, lookup)
        if found is not None:
            values[variable["name"]] = found
    return values


def _all_of(source: Json, lookup: Lookup) -> dict[str, str]:
    kind, key = (
        ("ConfigMap", "configMapRef") if "configMapRef" in source else ("Secret", "secretRef")
    )
    reference = source[key]
    found = lookup(kind, reference["name"])
    if found is None:
        if reference.get("optional"):
            return {}
        raise ConfigError(f"{kind} {reference['name']!r} not found")
    return {name: data.decode() for name, data in contents(found).items()}


def contents(found: Json) -> dict[str, bytes]:
    """Return the entries of a ConfigMap or Secret as bytes."""
    is_secret = found.get("kind") == "Secret" or "type" in found
    entries = {name: value.encode() for name, value in (found.get("data") or {}).items()}
    if is_secret:
        return {name: base64.b64decode(value) for name, value in entries.items()}
    binary = found.get("binaryData") or {}
    return entries | {name: base64.b64decode(value) for name, value in binary.items()}


def _value(
    pod: Json, container: Json, variable: Json, values: Mapping[str, str], lookup: Lookup
) -> str | None:
    source = variable.get("valueFrom")
    if source is None:
        return expand(variable.get("value", ""), values)
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return resource(container, source["resourceFieldRef"])
    kind, key = (
        ("ConfigMap", "configMapKeyRef")
        if "configMapKeyRef" in source
        else ("Secret", "secretKeyRef")
    )
    reference = source[key]
    found = lookup(kind, reference["name"])
    entry = None if found is None else contents(found).get(reference["key"])
    if entry is not None:
        return entry.decode()
    if reference.get("optional"):
        return None
    what = f"key {reference['key']!r} in " if found is not None else ""
    raise ConfigError(f"couldn't find {what}{kind} {reference['name']!r}")


def resource(container: Json, reference: Json) -> str:
    """Return a request or limit of the container in units of the divisor, rounded up."""
    part, _, name = reference["resource"].partition(".")
    amount = container.get("resources", {}).get(part, {}).get(name, "0")
    divisor = parse_quantity(str(reference.get("divisor", "1"))) or 1
    return str(math.ceil(parse_quantity(str(amount)) / divisor))


def command_line(container: Json, image: tuple[str, ...], values: Mapping[str, str]) -> list[str]:
    """Return the program and its arguments; `args` alone follow the image's own program."""
    command = container.get("command") or list(image)
    arguments = [expand(word, values) for word in [*command, *container.get("args", [])]]
    if not arguments:
        raise ConfigError(f"container {container['name']!r} names no command, nor does its image")
    return arguments
