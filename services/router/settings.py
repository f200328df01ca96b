"""Settings of the router, read from `UNDERSTUDY_ROUTER_*`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from services.router.policy import LLM
from services.router.pool_settings import PoolSettings, parse_pool
from services.router.sealing import parse_key
from services.router.tenants import parse_keys
from understudy.errors import InvalidArgument
from understudy.serving import SettingsError, parse_address, read_settings, text_or_file

PREFIX: Final = "UNDERSTUDY_ROUTER_"
MAX_DRAIN_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """What one router routes to, and its limits."""

    pools: str
    """JSON list of pools, or @file: llm, which there must be, slm, and others, which answer those
    who name them as the model. A native one is {"name", "workers", "version_dir"}; one behind
    OpenAI-compatible engines is {"name", "kind": "openai", "urls", "model", "position_parameters"}
    and may have "key_file", "ca_file", "max_context_tokens", "logprobs", "version_dir",
    "connect_timeout_s" and "idle_timeout_s" (pool_settings.py)."""
    tokenizer: Path | None = None
    """The `tokenizer.json` that all native pools share, or a GGUF file that carries it; needed
    unless every pool is external."""
    http_listen: str = "127.0.0.1:8080"
    """Address of the OpenAI-compatible edge; empty turns it off."""
    tls_dir: Path | None = None
    """Folder with the tls.crt and tls.key that callers see over gRPC and HTTP; empty (default):
    plaintext, for whatever ends TLS before the router. New files are taken up at once."""
    control_redis: str = ""
    """URL of the control Redis with the journal; empty turns resume and idempotency off."""
    control_redis_ca: Path | None = None
    """PEM file with the authorities that may have signed that server's certificate; empty
    (default): those of the system. For `rediss://` only, and read once."""
    journal_key: str = ""
    """32 bytes in base64, or @file, the same on every replica; empty makes a key of this process
    alone, so that only this replica can resume its answers."""
    tenant_secret: str = ""
    """Secret, or @file, behind the KV roots of tenants, the same on every replica; empty keeps
    tenants apart by name only."""
    api_keys: str = ""
    """JSON list of {"tenant", "sha256"}, or @file; empty asks for no key and needs loopback. A new
    file is taken up at once."""
    allow_open: bool = False
    """Serves without keys on addresses that others can reach; the network must guard the router."""
    journal_ttl_s: int = 3600
    """Seconds for which an answer can be resumed and an idempotency key is remembered."""
    request_timeout_s: float = 120.0
    """Longest time for one request, whatever its deadline."""
    drain_grace_s: float = 0.0
    """Seconds that running answers get to finish after SIGTERM, in place of the chassis' own:
    another replica resumes for SDK callers, but nobody can go on with an OpenAI stream. 0
    (default): as long as a request may take; a router without any leaves at once."""
    slm_patience_s: float = 2.0
    """Longest wait for an SLM worker before the LLM answers instead."""
    llm_patience_s: float = 60.0
    """Longest wait for an LLM worker before a request is refused as unavailable."""
    controllers: tuple[str, ...] = ()
    """Addresses of the controller, or names of all its replicas, which wakes pools that sleep with
    no worker; none (default): a pool without workers is waited for as long as the patience."""
    wake_patience_s: float = 300.0
    """Longest wait for a pool that is being woken; a request whose deadline comes first, or that
    would wait longer, is refused with the time to come back at."""
    startup_patience_s: float = 30.0
    """How long a router with an LLM waits for its SLM before it says that it is ready; with a
    controller also for the LLM, which may sleep."""
    max_prompt_bytes: int = 1024 * 1024
    """Largest request, in bytes of text: messages, tool calls, tools and schema together."""
    max_body_bytes: int = 4 * 1024 * 1024
    """Largest body of an HTTP request and largest gRPC message, in bytes."""
    max_requests: int = 256
    """Requests at once; beyond it they are refused with a retry delay."""
    llm_max_attempts: int = 64
    """LLM attempts at once; beyond it requests are refused with a retry delay."""
    escalations_per_s: float = 50.0
    """Escalations a second, with a burst of two seconds; bounds what a broken SLM costs."""

    def __post_init__(self) -> None:
        positive = (
            "journal_ttl_s", "request_timeout_s", "slm_patience_s", "llm_patience_s",
            "wake_patience_s", "max_prompt_bytes", "max_body_bytes", "max_requests",
            "llm_max_attempts", "escalations_per_s",
        )  # fmt: skip
        for name in positive:
            if getattr(self, name) <= 0:
                raise SettingsError(f"{PREFIX}{name.upper()} must be above zero.")
        if not 0 <= self.drain_grace_s <= MAX_DRAIN_S:
            raise SettingsError(
                f"{PREFIX}DRAIN_GRACE_S is {self.drain_grace_s:g}; set 0 to {MAX_DRAIN_S:g}."
            )
        if self.http_listen:
            parse_address(self.http_listen)
        for address in self.controllers:
            parse_address(address)
        if self.control_redis_ca and not self.control_redis.startswith("rediss://"):
            raise SettingsError(
                f"{PREFIX}CONTROL_REDIS_CA is set and {PREFIX}CONTROL_REDIS does not begin with "
                "rediss://, so nothing would be encrypted: change the URL, or leave it out."
            )
        self.parsed_pools()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings; a bad or unknown variable is refused by name."""
        return read_settings(cls, PREFIX, environ)

    @property
    def drain_s(self) -> float:
        """Seconds that running answers get to finish after SIGTERM."""
        return min(self.drain_grace_s or self.request_timeout_s, MAX_DRAIN_S)

    def parsed_pools(self) -> tuple[PoolSettings, ...]:
        """Return the pools, checked: `llm` exists, names are known and unique."""
        try:
            entries = json.loads(text_or_file(self.pools))
            pools = tuple(parse_pool(entry) for entry in entries)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SettingsError(
                f"{PREFIX}POOLS is no JSON list of pools with name and workers: {error!r}."
            ) from error
        names = [pool.name for pool in pools]
        if LLM not in names or len(set(names)) != len(names):
            raise SettingsError(f"{PREFIX}POOLS names {names}; it needs llm, and each name once.")
        if self.tokenizer is None and any(pool.external is None for pool in pools):
            raise SettingsError(f"{PREFIX}TOKENIZER is not set; native pools need it.")
        return pools

    def parsed_keys(self) -> dict[bytes, str]:
        """Return tenants by the SHA-256 of their keys."""
        try:
            return parse_keys(text_or_file(self.api_keys))
        except InvalidArgument as error:
            raise SettingsError(f"{PREFIX}API_KEYS: {error.message}") from error

    @property
    def keys_file(self) -> Path | None:
        """The file of the API keys; None where the setting holds them itself."""
        return Path(self.api_keys[1:]) if self.api_keys.startswith("@") else None

    def parsed_journal_key(self) -> bytes | None:
        """Return the journal's key, or None where none is set."""
        text = text_or_file(self.journal_key)
        try:
            return parse_key(text) if text.strip() else None
        except InvalidArgument as error:
            raise SettingsError(f"{PREFIX}JOURNAL_KEY: {error.message}") from error

    def check_open(self, *listeners: str) -> None:
        """Refuse to serve without keys on an address that others can reach."""
        reachable = [address for address in listeners if address and not _is_loopback(address)]
        if reachable and not self.allow_open and not self.parsed_keys():
            raise SettingsError(
                f"{', '.join(reachable)} can be reached from outside and there are no API keys; "
                f"set {PREFIX}API_KEYS, or {PREFIX}ALLOW_OPEN=true where the network guards it."
            )


def _is_loopback(address: str) -> bool:
    host, _ = parse_address(address)
    return host in ("127.0.0.1", "localhost", "::1") or host.startswith("unix:")
