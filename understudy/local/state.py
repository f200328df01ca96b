"""What the supervisor tells others: one JSON file, replaced as a whole at every change."""

import json
import os
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

FILE_NAME: Final = "state.json"
VERSION: Final = 1


class Phase(StrEnum):
    """Where a platform, or one of its services, stands in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(slots=True)
class ServiceState:
    """One service; port and metrics_port are 0 until they are known or where there is none."""

    name: str
    phase: Phase = Phase.WAITING
    pid: int = 0
    started: str = ""
    port: int = 0
    metrics_port: int = 0
    http_port: int = 0
    restarts: int = 0
    log: str = ""


@dataclass(slots=True)
class PlatformState:
    """The whole platform; `failure` is one sentence, empty when there is none."""

    pid: int
    started: str
    phase: Phase = Phase.STARTING
    failure: str = ""
    traces: str = ""
    services: list[ServiceState] = field(default_factory=list)
    version: int = VERSION

    def service(self, name: str) -> ServiceState:
        """Return one service by name."""
        return next(service for service in self.services if service.name == name)

    def save(self, run_dir: Path) -> None:
        """Write the file atomically; a reader sees the old state or this one."""
        draft = run_dir / f"{FILE_NAME}.{os.getpid()}"
        draft.write_text(json.dumps(asdict(self), indent=1), "utf-8")
        draft.replace(run_dir / FILE_NAME)

    @classmethod
    def load(cls, run_dir: Path) -> Self | None:
        """Read the file; None where there is none, or none of this version."""
        try:
            fields = json.loads((run_dir / FILE_NAME).read_text("utf-8"))
            if fields.pop("version") != VERSION:
                return None
            services = [
                ServiceState(**{**entry, "phase": Phase(entry["phase"])})
                for entry in fields.pop("services")
            ]
            return cls(**{**fields, "phase": Phase(fields["phase"]), "services": services})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
