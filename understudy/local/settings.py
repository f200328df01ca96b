"""Settings of the local runner, prefix UNDERSTUDY_LOCAL_."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Self

from understudy.serving import SettingsError, read_settings, text_or_file

PREFIX: Final = "UNDERSTUDY_LOCAL_"
_MAX_PORT: Final = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """How the platform runs on one machine."""

    run_dir: Path = Path(".understudy")
    """Where state, logs, traces and the Redis files live."""
    http_port: int = 8080
    """Port of the OpenAI-compatible edge on 127.0.0.1; 0 takes a free one."""
    grpc_port: int = 9090
    """Port of the router's gRPC API on 127.0.0.1; 0 takes a free one."""
    kv_redis: str = ""
    """URL of a Redis for KV chunks; empty starts a Valkey of our own."""
    control_redis: str = ""
    """URL of a Redis for journal and quotas; empty starts a Valkey of our own."""
    llm: str = "smollm2"
    """The LLM's weights: a `.gguf` file, a safetensors directory, or `smollm2`."""
    llm_name: str = "smollm2-135m-instruct"
    """Public name of the LLM."""
    llm_adapters: tuple[str, ...] = ()
    """LoRA adapters of the LLM, each as `name=path`; empty takes those that ship."""
    llm_pool: str = ""
    """An LLM behind OpenAI-compatible engines instead of workers here: a JSON object with "urls",
    "model", "position_parameters" and what else the router's pools of kind `openai` take, or
    @file; files in it by absolute path."""
    slm: Path | None = None
    """Version directory of the SLM with its manifest; unset takes the one that ships."""
    triton: bool = False
    """Let a Triton server compute the LLM's feed-forwards; install_triton.py must have run."""
    start_timeout_s: float = 300.0
    """Longest wait for one service to become ready."""
    stop_timeout_s: float = 15.0
    """Longest wait for one service to drain before it is killed."""

    def __post_init__(self) -> None:
        for name, port in (("HTTP_PORT", self.http_port), ("GRPC_PORT", self.grpc_port)):
            if not 0 <= port <= _MAX_PORT:
                raise SettingsError(f"{PREFIX}{name} is {port}; set 0 to {_MAX_PORT}.")
        if self.http_port == self.grpc_port != 0:
            raise SettingsError(
                f"{PREFIX}HTTP_PORT and {PREFIX}GRPC_PORT are both {self.http_port}; set two ports."
            )
        if self.external_llm() is not None and self.triton:
            raise SettingsError(f"{PREFIX}TRITON computes an LLM of this machine, not LLM_POOL's.")
        for name, seconds in (("START", self.start_timeout_s), ("STOP", self.stop_timeout_s)):
            if not 0 < seconds <= 3600:
                raise SettingsError(f"{PREFIX}{name}_TIMEOUT_S is {seconds:g}; set 1 to 3600.")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings. Raises SettingsError naming what is bad or unknown."""
        return read_settings(cls, PREFIX, environ)

    def external_llm(self) -> dict[str, object] | None:
        """Return the entry of the LLM among the router's pools; None where it runs here."""
        if not self.llm_pool:
            return None
        try:
            entry = json.loads(text_or_file(self.llm_pool))
        except ValueError as error:
            raise SettingsError(f"{PREFIX}LLM_POOL is no JSON: {error}.") from error
        if not isinstance(entry, dict):
            raise SettingsError(f"{PREFIX}LLM_POOL is no JSON object.")
        return {**entry, "name": "llm", "kind": "openai"}

    def to_env(self) -> dict[str, str]:
        """Return the variables that `from_env` reads back as these settings."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            f"{PREFIX}{name.upper()}": ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in values.items()
            if value is not None
        }
