"""Where the platform runs, checked and prepared before any process starts."""

import base64
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from understudy.errors import FailedPrecondition
from understudy.local.models import LocalModels, find_checkout, find_models
from understudy.local.ports import free_port, require_free, require_redis
from understudy.local.settings import PREFIX, LocalSettings

JOURNAL_KEY_FILE: Final = "journal.key"
TENANT_SECRET_FILE: Final = "tenant.secret"  # noqa: S105  # a file name
TRACES_FILE: Final = "traces.sqlite"
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Site:
    """Files, models and fixed ports of one platform; `http_port` is never 0."""

    root: Path
    run_dir: Path
    settings: LocalSettings
    models: LocalModels
    http_port: int

    @property
    def traces(self) -> Path:
        """The trace store's file."""
        return self.run_dir / TRACES_FILE


def prepare_site(settings: LocalSettings) -> Site:
    """Check everything that can be checked beforehand, and make the run directory.

    Raises FailedPrecondition or InvalidArgument with a remedy: no checkout, weights missing, a
    port taken, a Redis that does not answer, an operating system other than Linux.
    """
    if not sys.platform.startswith("linux"):
        raise FailedPrecondition(
            "The platform runs on Linux: its processes are found and ended by what /proc says."
        )
    root = find_checkout()
    models = find_models(settings, root)
    require_free(settings.http_port, "the OpenAI-compatible edge", f"{PREFIX}HTTP_PORT")
    require_free(settings.grpc_port, "the router", f"{PREFIX}GRPC_PORT")
    for name, url in (("KV", settings.kv_redis), ("CONTROL", settings.control_redis)):
        if url:
            require_redis(url, f"{PREFIX}{name}_REDIS")
    run_dir = settings.run_dir.resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in (JOURNAL_KEY_FILE, TENANT_SECRET_FILE):
        _make_secret(run_dir / name)
    return Site(root, run_dir, settings, models, settings.http_port or free_port())


def _make_secret(path: Path) -> None:
    """Write a secret only we can read, unless there is one: what it protects outlives a run."""
    if path.exists():
        return
    draft = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(base64.b64encode(secrets.token_bytes(_SECRET_BYTES)))
    draft.replace(path)
