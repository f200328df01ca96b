"""GGUF files under canonical names: dequantised to float32, or in blocks as the file has them.

For llama, llama.cpp's converter interleaves the rows of q and k for its rotary layout; they are
put back here, so that tensors equal those of the Hugging Face checkpoint.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import torch
from torch import Tensor

from understudy.errors import FailedPrecondition
from understudy.gguf_header import TensorEntry, map_file, parse_header
from understudy.model.config import ModelConfig
from understudy.model.expanded import Expanded, report_expanded
from understudy.model.families import FAMILIES, gguf_names, read_gguf_config
from understudy.model.families.family import FFN_BLOCK

NAMES: Final[Mapping[str, str]] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES: Final[Mapping[str, str]] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
EXPERT_NAMES: Final[Mapping[str, str]] = {
    "ffn_gate_exps": "gate_proj",
    "ffn_down_exps": "down_proj",
    "ffn_up_exps": "up_proj",
}
# Divisors of rotary frequencies; they belong to the config.
ROPE_TABLE: Final = "rope_freqs.weight"
LAYER_PATTERN: Final = re.compile(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)")


FLOAT_KINDS: Final[Mapping[str, torch.dtype]] = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
BLOCK_KINDS: Final = frozenset(("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"))
"""Quantised types that are computed with as they are."""
KINDS_REASON: Final = (
    f"only {', '.join(sorted(BLOCK_KINDS))} are computed with as they are; quantise to one of them"
)
FLOAT_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class GgufBlocks:
    """A matrix (N, K) as the file has it."""

    kind: gguf.GGMLQuantizationType
    raw: Tensor  # (N, bytes of a row) uint8


def read_gguf(path: Path) -> tuple[ModelConfig, Iterator[tuple[str, Tensor]]]:
    """Return the config of a GGUF file, and its tensors in float32 one after the other.

    Raises FailedPrecondition naming the file, and the tensor where one is at fault.
    """
    config, content, entries = _open(path)
    return config, _tensors(path, config, content, entries, _dequantise)


def read_gguf_blocks(
    path: Path,
) -> tuple[ModelConfig, Iterator[tuple[str, Tensor | GgufBlocks]]]:
    """Return the config, and the tensors one after the other, quantised matrices in their blocks.

    Matrices of 16 bits stay so; everything else is float32, and a warning says so of quantised
    matrices. Raises what `read_gguf` raises.
    """
    config, content, entries = _open(path)
    report_expanded(list(_expanded(entries)), f"{path.name}: {KINDS_REASON}")
    return config, _stored(path, config, content, entries)


def _open(path: Path) -> tuple[ModelConfig, memoryview, list[TensorEntry]]:
    content = map_file(path)
    header = parse_header(path.name, content)
    entries = {entry.name: entry for entry in header.tensors}
    metadata = dict(header.metadata)
    if "token_embd.weight" in entries:
        key = f"{gguf_names(metadata)[1].architecture}.vocab_size"
        metadata.setdefault(key, entries["token_embd.weight"].shape[0])
    table = entries.pop(ROPE_TABLE, None)
    config = read_gguf_config(
        metadata,
        tie_embeddings="output.weight" not in entries,
        rope_factors=() if table is None else _dequantise(path, content, table).tolist(),
        ffn_block=max([FFN_BLOCK, *(_block(entry) for entry in entries.values())]),
    )
    return config, content, list(entries.values())


def _block(entry: TensorEntry) -> int:
    """Return how many weights share a scale, of a tensor that may be cut between its columns."""
    match = LAYER_PATTERN.fullmatch(entry.name)
    is_cut = match is not None and match[2] == "ffn_down"
    return gguf.GGML_QUANT_SIZES[entry.kind][0] if is_cut else 1


def _expanded(entries: Iterable[TensorEntry]) -> Iterator[Expanded]:
    """Yield the quantised matrices that no kernel computes with."""
    computed = {*BLOCK_KINDS, *FLOAT_KINDS, "F32"}
    for entry in entries:
        if len(entry.shape) > 1 and entry.kind.name not in computed:
            size_bytes = FLOAT_BYTES * math.prod(entry.shape)
            yield Expanded(entry.name, entry.kind.name, size_bytes, entry.size_bytes)


def _tensors(
    path: Path,
    config: ModelConfig,
    content: memoryview,
    entries: list[TensorEntry],
    read: Callable[[Path, memoryview, TensorEntry], Tensor],
) -> Iterator[tuple[str, Tensor]]:
    for entry in entries:
        yield from _canonical(path, config, entry.name, read(path, content, entry)).items()


def _stored(
    path: Path, config: ModelConfig, content: memoryview, entries: list[TensorEntry]
) -> Iterator[tuple[str, Tensor | GgufBlocks]]:
    for entry in entries:
        is_matrix, kind = len(entry.shape) > 1, entry.kind.name
        if is_matrix and kind in BLOCK_KINDS:
            for name, raw in _tensors(path, config, content, [entry], _raw):
                yield name, GgufBlocks(entry.kind, raw)
        elif is_matrix and kind in FLOAT_KINDS:
            for name, raw in _tensors(path, config, content, [entry], _raw):
                yield name, raw.view(FLOAT_KINDS[kind])
        else:
            yield from _tensors(path, config, content, [entry], _dequantise)


def _raw(path: Path, content: memoryview, entry: TensorEntry) -> Tensor:  # noqa: ARG001
    raw = np.frombuffer(content, np.uint8, entry.size_bytes, entry.start)
    return torch.tensor(raw.reshape(*entry.shape[:-1], entry.row_bytes))


def _dequantise(path: Path, content: memoryview, entry: TensorEntry) -> Tensor:
    raw = np.frombuffer(content, np.uint8, entry.size_bytes, entry.start)
    rows = raw.reshape(*entry.shape[:-1], entry.row_bytes)
    try:
        # What is not finite is refused with its tensor's name once all its values are there.
        with np.errstate(invalid="ignore", over="ignore"):
            values = gguf.quants.dequantize(rows, entry.kind)
    except NotImplementedError as error:
        raise FailedPrecondition(
            f"{path.name} has {entry.name!r} in the unsupported type {entry.kind.name}.",
            {"tensor": entry.name},
        ) from error
    # A copy of our own: aligned memory, and no tie to the mapped file.
    return torch.tensor(values, dtype=torch.float32)


def _canonical(path: Path, config: ModelConfig, name: str, value: Tensor) -> dict[str, Tensor]:
    plain = NAMES.get(name.removesuffix(".weight"))
    if plain is not None:
        return {f"{plain}.weight": value}
    match = LAYER_PATTERN.fullmatch(name)
    layer, kind, what = match.groups() if match else ("", "", "")
    prefix = f"model.layers.{layer}"
    if kind in LAYER_NAMES:
        names = FAMILIES[config.family].gguf
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(kind)
        is_interleaved = names is not None and names.has_interleaved_rows
        if heads is not None and what == "weight" and is_interleaved:
            value = _halves(path, name, value, heads)
        if kind == "ffn_gate_inp_shexp":
            value = value.reshape(1, -1)  # llama.cpp keeps the single row as a vector
        return {f"{prefix}.{LAYER_NAMES[kind]}.{what}": value}
    if kind in EXPERT_NAMES:
        return {
            f"{prefix}.mlp.experts.{expert_id}.{EXPERT_NAMES[kind]}.weight": expert
            for expert_id, expert in enumerate(value.unbind(0))
        }
    raise FailedPrecondition(f"{path.name} has the unknown tensor {name!r}.", {"tensor": name})


def _halves(path: Path, name: str, value: Tensor, heads: int) -> Tensor:
    if value.dim() != 2 or value.shape[0] % (2 * heads):
        raise FailedPrecondition(
            f"{path.name} has {name!r} of shape {tuple(value.shape)}, not divisible into {heads}"
            " heads.",
            {"tensor": name},
        )
    pairs = value.view(heads, -1, 2, value.shape[1])
    return pairs.transpose(1, 2).reshape(value.shape)
