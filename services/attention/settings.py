"""Settings of the attention worker, read from `UNDERSTUDY_ATTENTION_*`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from understudy.serving import SettingsError, read_settings

PREFIX: Final = "UNDERSTUDY_ATTENTION_"

KvDtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSettings:
    """What one attention worker serves and how much of it."""

    model: str
    """A `.gguf` file, a directory with safetensors, or `smollm2` for the wheel's file."""
    model_name: str
    """Public name of the model; with the digest it makes the version that `Info` reports."""
    pool: str = "llm"
    """Pool this worker belongs to; names its traces and the placement it watches."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters that requests may name, each as `name=path`."""
    tokenizer: str = "auto"
    """A `tokenizer.json`; `auto` takes the one beside the weights, or the one inside the GGUF."""
    compute: Literal["exact", "fast", "reference"] = "exact"
    """Arithmetic: `exact` multiplies float32 by weights in the file's own format, `fast` rounds
    activations to int8 before they meet quantised weights, `reference` is plain torch over expanded
    weights and serves where kernels cannot be compiled. With `remote` feed-forwards the expert
    workers' must be the same. Decision 0008 tells what each promises."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where weights, keys and values lie and steps are computed: `auto` takes a GPU where the
    container has one that torch can use. Never run on a GPU."""
    weights_dtype: Literal["float32", "bfloat16", "float16", "int8", "int4"] = "float32"
    """Type that matrices of 32 bits are kept in; with `remote` feed-forwards the expert workers'
    must be the same. 16 bits halve the memory; int8 and int4, with a scale for every 32 inputs,
    take a quarter and an eighth of it. Matrices of a smaller type keep the file's format, except
    for `reference`."""
    kv_dtype: KvDtype = "auto"
    """Type that keys and values are cached in; int8 has a scale per token and head. `auto` takes
    float16 where `compute` is `fast` and float32 otherwise: `exact` promises float32 throughout."""
    token_budget: int = 256
    """Positions computed per step, at most: larger chunks of a prompt are computed faster."""
    mixed_token_budget: int = 12
    """Positions computed per step while answers run, at most, or twice as many as they decode where
    that is more: bounds the time between their tokens while a prompt arrives. Late tokens of a long
    prompt count for several; where prompts queue, a step is as large as a 256th of what waits to be
    read. `benchmarks.scheduling` measures what it costs and gains."""
    batch_share: float = 0.25
    """Part of a step that sequences of batch priority get while others are live, (0, 1]: bounds
    how much longer they make a step. Alone they get all of it."""
    max_sequences: int = 32
    """Sequences running at once, at most."""
    max_waiting: int = 256
    """Sequences waiting, at most; beyond it requests are refused with a retry delay, those of
    batch priority beyond half of it."""
    block_size: int = 16
    """Tokens per KV block, which is also the chunk of the kvstore."""
    num_blocks: int = 0
    """KV blocks; 0 takes as many as fit `kv_memory_mib`."""
    kv_memory_mib: int = 512
    """Memory of the KV blocks in MiB, where `num_blocks` is 0."""
    max_context: int = 0
    """Largest prompt plus output in tokens; 0 takes the model's. The blocks bound it too."""
    kvstore: str = ""
    """Address of the kvstore; empty keeps KV in this process only."""
    kvstore_min_tokens: int = 32
    """Fewest missing prefix tokens worth asking the kvstore for."""
    kvstore_timeout_s: float = 0.25
    """Longest wait for a look-up, and for a chunk of the first read; what is late is recomputed."""
    kvstore_write_touches: int = 2
    """A chunk is written once this many sequences have had it; one-off prompts stay out."""
    ffn: Literal["fused", "remote"] = "fused"
    """Where feed-forwards are computed: in this process, or on expert workers."""
    placement: str = ""
    """Address of the controller that places experts; needed when `ffn` is `remote`."""
    threads: int = 0
    """Threads of one forward; 0 leaves it to torch."""
    session_queue: int = 256
    """Unread outputs of one router, at most; a slower reader loses its sequences."""

    def __post_init__(self) -> None:
        for field, value, least in (
            ("TOKEN_BUDGET", self.token_budget, 1),
            ("MIXED_TOKEN_BUDGET", self.mixed_token_budget, 1),
            ("MAX_SEQUENCES", self.max_sequences, 1),
            ("MAX_WAITING", self.max_waiting, 1),
            ("BLOCK_SIZE", self.block_size, 1),
            ("NUM_BLOCKS", self.num_blocks, 0),
            ("KV_MEMORY_MIB", self.kv_memory_mib, 1),
            ("MAX_CONTEXT", self.max_context, 0),
            ("KVSTORE_MIN_TOKENS", self.kvstore_min_tokens, 1),
            ("KVSTORE_TIMEOUT_S", self.kvstore_timeout_s, 0.001),
            ("KVSTORE_WRITE_TOUCHES", self.kvstore_write_touches, 1),
            ("THREADS", self.threads, 0),
            ("SESSION_QUEUE", self.session_queue, 1),
        ):
            if not value >= least:
                raise SettingsError(f"{PREFIX}{field} is {value:g}; the least is {least:g}.")
        if not 0.0 < self.batch_share <= 1.0:
            raise SettingsError(
                f"{PREFIX}BATCH_SHARE is {self.batch_share:g}; it is above 0 and at most 1."
            )
        if self.ffn == "remote" and not self.placement:
            raise SettingsError(
                f"{PREFIX}FFN is remote, so {PREFIX}PLACEMENT must name the controller's address."
            )
        self.adapter_paths()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings. Raises SettingsError naming what is missing, bad or unknown."""
        return read_settings(cls, PREFIX, environ)

    def adapter_paths(self) -> dict[str, Path]:
        """Return the path of each adapter by name. Raises SettingsError for a malformed entry."""
        paths: dict[str, Path] = {}
        for entry in self.adapters:
            name, separator, path = entry.partition("=")
            if not (name and separator and path) or name in paths:
                raise SettingsError(
                    f"{PREFIX}ADAPTERS has the entry {entry!r}; write each as name=path, once."
                )
            paths[name] = Path(path)
        return paths
