"""Settings of the kvstore, prefix UNDERSTUDY_KVSTORE_."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from understudy.serving import SettingsError, read_settings

PREFIX: Final = "UNDERSTUDY_KVSTORE_"
SCHEMES: Final = ("redis://", "rediss://", "unix://")


@dataclass(frozen=True, slots=True)
class KvStoreSettings:
    """How much is kept, and how Redis is used."""

    redis_url: str = ""
    """KV Redis, such as `redis://host:6379/0`; empty keeps chunks in host memory only. Never the
    control Redis: this one evicts."""
    redis_ca: Path | None = None
    """PEM file with the authorities that may have signed the Redis server's certificate; empty
    (default): those of the system. For `rediss://` only, and read once."""
    memory_mib: int = 512
    """Host memory for chunks in MiB; the least recently used leave first."""
    redis_timeout_s: float = 0.25
    """Longest wait for one answer of Redis; a late chunk is a miss."""
    redis_connections: int = 8
    """Chunks read or written at once; more than eight gain nothing on one Redis."""
    redis_inflight_mib: int = 64
    """Bytes that may wait to be written to Redis; beyond them chunks stay in memory only."""
    redis_write_touches: int = 1
    """How often a chunk must be put before it is written to Redis; 2 keeps one-off prompts out
    where attention workers do not do so already."""
    breaker_failures: int = 3
    """Failures in a row after which Redis is left alone."""
    breaker_rest_s: float = 5.0
    """Seconds until one request tries Redis again."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("MEMORY_MIB", self.memory_mib, 1),
            ("REDIS_TIMEOUT_S", self.redis_timeout_s, 0.001),
            ("REDIS_CONNECTIONS", self.redis_connections, 1),
            ("REDIS_INFLIGHT_MIB", self.redis_inflight_mib, 1),
            ("REDIS_WRITE_TOUCHES", self.redis_write_touches, 1),
            ("BREAKER_FAILURES", self.breaker_failures, 1),
            ("BREAKER_REST_S", self.breaker_rest_s, 0.01),
        ):
            if not value >= least:
                raise SettingsError(f"{PREFIX}{name} is {value:g}; the least is {least:g}.")
        if self.redis_url and not self.redis_url.startswith(SCHEMES):
            raise SettingsError(
                f"{PREFIX}REDIS_URL must start with one of {', '.join(SCHEMES)}, or be empty."
            )

        if self.redis_ca and not self.redis_url.startswith("rediss://"):
            raise SettingsError(
                f"{PREFIX}REDIS_CA is set and {PREFIX}REDIS_URL does not begin with rediss://, so "
                "nothing would be encrypted: change the URL, or leave the authority out."
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the environment. Raises SettingsError naming a bad or unknown variable."""
        return read_settings(cls, PREFIX, environ)
