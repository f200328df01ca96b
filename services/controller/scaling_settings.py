"""Settings of scaling, prefix UNDERSTUDY_SCALING_: rules as JSON, and how to act on them."""

import dataclasses
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self, TypeVar, get_type_hints

from services.controller.cluster import Workload, WorkloadKind
from services.controller.gathering import Target
from services.controller.scaling.rules import PartRules, PoolRules, ScalingRules
from services.controller.scaling.signals import Part
from understudy.serving import SettingsError, read_settings, text_or_file

PREFIX: Final = "UNDERSTUDY_SCALING_"
MAX_POOLS: Final = 64
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_Rules = TypeVar("_Rules")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is scaled, by which rules."""

    rules: ScalingRules
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """Whether, where and how closely pools are scaled."""

    rules: str = ""
    """JSON of the rules, or `@path` of such a file; empty (default): nothing is scaled."""
    namespace: str = "default"
    """Namespace of the workloads and of the lease."""
    routers: str = "app.kubernetes.io/component=router"
    """Label selector of the routers' pods, whose metrics tell the time to the first token."""
    interval_s: float = 15.0
    """Pause between two decisions, and length of the windows that they rest on."""
    read_timeout_s: float = 3.0
    """Longest wait for one pod's metrics."""
    unschedulable_after_s: float = 60.0
    """How long the scheduler may look for a node before its pods are given back."""
    lease: str = "understudy-controller"
    """Name of the Lease that leaders hold."""
    identity: str = ""
    """Name under which this process leads; empty (default): the host's, which is the pod's."""
    dry_run: bool = False
    """Decide, count and log, but change nothing."""

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("INTERVAL_S", self.interval_s, 1, 600),
            ("READ_TIMEOUT_S", self.read_timeout_s, 0.1, 60),
            ("UNSCHEDULABLE_AFTER_S", self.unschedulable_after_s, 0, 3600),
        ):
            if not least <= value <= most:
                raise SettingsError(f"{PREFIX}{name} is {value:g}; it must be {least:g} to {most}.")
        for name, text in (("NAMESPACE", self.namespace), ("LEASE", self.lease)):
            if not _NAME.fullmatch(text):
                raise SettingsError(f"{PREFIX}{name} is {text!r}, no name of a Kubernetes object.")
        self.plan()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the environment. Raises SettingsError naming a bad or unknown variable."""
        return read_settings(cls, PREFIX, environ)

    def plan(self) -> Plan | None:
        """Return the rules and workloads, None when nothing is scaled.

        Raises SettingsError saying what is malformed.
        """
        if not self.rules:
            return None
        try:
            found = json.loads(text_or_file(self.rules))
        except json.JSONDecodeError as error:
            raise SettingsError(f"{PREFIX}RULES is no JSON: {error}.") from error
        return _plan(found)

    def own_identity(self) -> str:
        """Return the name under which this process leads."""
        return self.identity or socket.gethostname()


def _plan(found: object) -> Plan:
    if not isinstance(found, dict) or not isinstance(found.get("pools"), list):
        raise SettingsError(f'{PREFIX}RULES must be a JSON object with a list "pools".')
    entries = found["pools"]
    if len(entries) > MAX_POOLS:
        raise SettingsError(f"{PREFIX}RULES names {len(entries)} pools, more than {MAX_POOLS}.")
    pairs = [_pool(entry, f"pools[{index}]") for index, entry in enumerate(entries)]
    rest = {key: value for key, value in found.items() if key != "pools"}
    pools = {"pools": tuple(rules for rules, _ in pairs)}
    rules = _built(ScalingRules, rest, "the object", pools)
    return Plan(rules, tuple(target for _, target in pairs))


def _pool(entry: object, where: str) -> tuple[PoolRules, Target]:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise SettingsError(f"{PREFIX}RULES: {where} must be an object with a name.")
    parts: dict[str, object] = {}
    workloads: dict[Part, Workload] = {}
    for part in Part:
        if entry.get(part.value) is not None:
            parts[part.value], workloads[part] = _part(entry[part.value], f"{where}.{part.value}")
    if Part.ATTENTION not in workloads:
        raise SettingsError(f"{PREFIX}RULES: {where} has no attention workers.")
    rest = {key: value for key, value in entry.items() if key not in {*Part, "name"}}
    rules = _built(PoolRules, rest, where, {**parts, "name": entry["name"]})
    return rules, Target(entry["name"], workloads)


def _part(entry: object, where: str) -> tuple[PartRules, Workload]:
    if not isinstance(entry, dict) or not isinstance(entry.get("workload"), str):
        raise SettingsError(
            f'{PREFIX}RULES: {where} must be an object with a workload such as "deployments/llm".'
        )
    kind, _, name = entry["workload"].partition("/")
    if kind not in set(WorkloadKind) or not _NAME.fullmatch(name):
        raise SettingsError(
            f"{PREFIX}RULES: {where}.workload is {entry['workload']!r}; write deployments/NAME or "
            "statefulsets/NAME."
        )
    rest = {key: value for key, value in entry.items() if key != "workload"}
    return _built(PartRules, rest, where, {}), Workload(WorkloadKind(kind), name)


def _built(
    cls: type[_Rules], found: Mapping[str, object], where: str, known: Mapping[str, object]
) -> _Rules:
    """Build rules from JSON numbers; null takes the default of a field that may be absent."""
    hints = get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)} - {"pools", "name", *Part}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for key, value in found.items():
        if key not in names:
            raise SettingsError(
                f"{PREFIX}RULES: {where} has the unknown key {key!r}; known: "
                f"{', '.join(sorted(names))}."
            )
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SettingsError(f"{PREFIX}RULES: {where}.{key} is {value!r}, no number.")
        if hints[key] is int and not isinstance(value, int):
            raise SettingsError(f"{PREFIX}RULES: {where}.{key} is {value!r}, no whole number.")
        values[key] = value
    try:
        return cls(**known, **values)
    except ValueError as error:
        raise SettingsError(f"{PREFIX}RULES: {error}") from error
