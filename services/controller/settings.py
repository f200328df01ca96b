"""Settings of the controller, prefix UNDERSTUDY_CONTROLLER_."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from services.controller.placement import PoolMembers
from understudy.discovery import open_discovery
from understudy.errors import InvalidArgument
from understudy.serving import SettingsError, parse_address, read_settings, text_or_file

PREFIX: Final = "UNDERSTUDY_CONTROLLER_"


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """Which pools have expert workers, and how closely they are looked after."""

    pools: str
    """JSON `[{"pool": "llm", "replicas": ["host:port", ...]}]`, or `@path` of such a file.

    Pools whose expert workers come and go name their Service instead of a list:
    `"replicas": "k8s:namespace/service:port-name"`.
    """
    probe_interval_s: float = 1.0
    """Pause between two looks at a replica; a dead one leaves the table within about twice that."""
    probe_timeout_s: float = 2.0
    """Longest wait for a replica's answer."""

    def __post_init__(self) -> None:
        for name, value in (
            ("PROBE_INTERVAL_S", self.probe_interval_s),
            ("PROBE_TIMEOUT_S", self.probe_timeout_s),
        ):
            if not 0.01 <= value <= 60:
                raise SettingsError(f"{PREFIX}{name} is {value:g}; it must be 0.01 to 60.")
        self.members()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the environment. Raises SettingsError naming a bad or unknown variable."""
        return read_settings(cls, PREFIX, environ)

    def members(self) -> tuple[PoolMembers, ...]:
        """Return the pools with their replicas. Raises SettingsError saying what is malformed."""
        try:
            entries = json.loads(text_or_file(self.pools))
        except json.JSONDecodeError as error:
            raise SettingsError(f"{PREFIX}POOLS is no JSON: {error}.") from error
        if not isinstance(entries, list):
            raise SettingsError(f"{PREFIX}POOLS must be a JSON list of pools.")
        members = tuple(_members(entry) for entry in entries)
        names = [pool.pool for pool in members]
        if len(set(names)) < len(names):
            raise SettingsError(f"{PREFIX}POOLS names a pool twice: {', '.join(sorted(names))}.")
        return members


def _members(entry: object) -> PoolMembers:
    match entry:
        case {"pool": str(pool), "replicas": str(spec), **rest} if pool and not rest:
            if not spec.startswith("k8s:"):
                raise SettingsError(f"{PREFIX}POOLS has the replicas {spec!r}, no k8s:... or list.")
            try:
                open_discovery(spec)  # nothing is asked before it is watched
            except InvalidArgument as error:
                raise SettingsError(f"{PREFIX}POOLS: {error.message}") from error
            return PoolMembers(pool, (), spec)
        case {"pool": str(pool), "replicas": list(replicas), **rest} if pool and not rest:
            for address in replicas:
                if not isinstance(address, str):
                    raise SettingsError(f"{PREFIX}POOLS has the replica {address!r}, no host:port.")
                parse_address(address)
            return PoolMembers(pool, tuple(dict.fromkeys(replicas)))
        case _:
            raise SettingsError(
                f"{PREFIX}POOLS has the entry {entry!r}; write each as "
                '{"pool": "llm", "replicas": ["host:port"]}.'
            )
