"""What settings say of a pool: native workers, or the endpoints of an external engine."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from services.router.policy import AUTO

Entry = Mapping[str, object]
Kind = Literal["native", "openai"]

MAX_URLS: Final = 16
DEFAULT_CONNECT_TIMEOUT_S: Final = 5.0
DEFAULT_IDLE_TIMEOUT_S: Final = 60.0
_NAME: Final = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
_COMMON: Final = frozenset({"name", "kind", "version_dir"})


@dataclass(frozen=True, slots=True)
class ExternalSettings:
    """Engines behind URLs, and what nobody but the operator knows of their model."""

    urls: tuple[str, ...]
    """Base URLs as OpenAI's clients take them, with the version: `https://engine:8000/v1`."""
    model: str
    """Name under which the engines serve the model; with calibrators, the id of their version."""
    position_parameters: int
    """Non-embedding active parameters plus LM head of the model: what a position costs."""
    key_file: Path | None = None
    """File with the API key, read again every few seconds; none sends none."""
    ca_file: Path | None = None
    """PEM certificates that engines are checked against instead of the system's; read again
    every few seconds."""
    max_context_tokens: int = 0
    """Context of the model; 0 takes what the engine's list of models says."""
    logprobs: bool = False
    """Asks for the best two candidates of each token, without which no SLM answer is trusted."""
    connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S
    """Longest time to a connection."""
    idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S
    """Longest silence of an engine, queue and prefill included, before the try is given up."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """One pool: where it runs and what is on stage there."""

    name: str
    workers: str
    """Addresses separated by commas, or `k8s:namespace/service:port-name`; empty for `openai`."""
    version_dir: Path | None
    """Version directory of the SLM with its calibrators; none means that nothing is calibrated."""
    external: ExternalSettings | None = None
    """None for a native pool."""


def parse_pool(entry: Entry) -> PoolSettings:
    """Read one entry of the list of pools; ValueError, TypeError or KeyError where it is wrong."""
    kind = entry.get("kind", "native")
    if kind not in ("native", "openai"):
        raise ValueError(f"the kind {kind!r} is not native or openai")
    name = str(entry["name"])
    if name == AUTO or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} names no pool: up to 32 of a-z, 0-9 and '-', not {AUTO!r}")
    directory = str(entry.get("version_dir") or "")
    known = {"workers"} if kind == "native" else set(ExternalSettings.__dataclass_fields__)
    unknown = sorted(set(entry) - known - _COMMON)
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a setting of a pool of kind {kind}")
    return PoolSettings(
        name=name,
        workers=_workers(entry["workers"]) if kind == "native" else "",
        version_dir=Path(directory) if directory else None,
        external=_external(entry) if kind == "openai" else None,
    )


def _workers(workers: object) -> str:
    return workers if isinstance(workers, str) else ",".join(map(str, _items(workers, "workers")))


def _items(items: object, name: str) -> list[object]:
    if not isinstance(items, list) or not items:
        raise ValueError(f"{name} are a list, or text")
    return items


def _external(entry: Entry) -> ExternalSettings:
    urls = tuple(_url(url) for url in _items(entry["urls"], "urls"))
    if len(urls) > MAX_URLS or len(set(urls)) != len(urls):
        raise ValueError(f"urls are up to {MAX_URLS}, each of them once")
    model = entry["model"]
    if not isinstance(model, str) or not model.strip():
        raise ValueError("model is the name under which the engine serves it")
    logprobs = entry.get("logprobs", False)
    if not isinstance(logprobs, bool):
        raise TypeError("logprobs is true or false")
    return ExternalSettings(
        urls=urls,
        model=model,
        position_parameters=_whole(entry, "position_parameters", 1),
        key_file=_path(entry, "key_file"),
        ca_file=_path(entry, "ca_file"),
        max_context_tokens=_whole(entry, "max_context_tokens", 0, default=0),
        logprobs=logprobs,
        connect_timeout_s=_seconds(entry, "connect_timeout_s", DEFAULT_CONNECT_TIMEOUT_S),
        idle_timeout_s=_seconds(entry, "idle_timeout_s", DEFAULT_IDLE_TIMEOUT_S),
    )


def _url(url: object) -> str:
    """A base URL without a slash at its end; keys do not belong into it, where logs show them."""
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a URL begins with http:// or https:// and names a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a URL carries no user, query or fragment; give the key as key_file")
    _ = parts.port  # raises ValueError for what is no port
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _whole(entry: Entry, name: str, least: int, default: int | None = None) -> int:
    value = entry.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is a whole number of at least {least}")
    return value


def _seconds(entry: Entry, name: str, default: float) -> float:
    value = entry.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds")
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be above zero")
    return float(value)


def _path(entry: Entry, name: str) -> Path | None:
    text = str(entry.get(name) or "")
    return Path(text) if text else None
