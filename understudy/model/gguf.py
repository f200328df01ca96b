"""GGUF files of the llama architecture, dequantised to float32 under canonical names.

llama.cpp interleaves the rows of q and k for its rotary layout; they are put back here, so that
tensors equal those of the Hugging Face checkpoint.
"""

import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import torch
from torch import Tensor

from understudy.errors import FailedPrecondition
from understudy.model.config import ModelConfig
from understudy.model.gguf_header import TensorEntry, parse_header

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
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "block_sparse_moe.gate",
}
EXPERT_NAMES: Final[Mapping[str, str]] = {
    "ffn_gate_exps": "w1",
    "ffn_down_exps": "w2",
    "ffn_up_exps": "w3",
}
# Tables that only repeat what the metadata says.
IGNORED: Final = frozenset({"rope_freqs.weight"})
LAYER_PATTERN: Final = re.compile(r"blk\.(\d{1,5})\.(\w+)\.weight")


def read_gguf(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return config and float32 tensors of a GGUF file.

    Raises FailedPrecondition naming the file, and the tensor where one is at fault.
    """
    content = _map(path)
    header = parse_header(path.name, content)
    shapes = {entry.name: entry.shape for entry in header.tensors}
    metadata = dict(header.metadata)
    if "token_embd.weight" in shapes:
        metadata.setdefault("llama.vocab_size", shapes["token_embd.weight"][0])
    config = ModelConfig.from_gguf(metadata, tie_embeddings="output.weight" not in shapes)
    weights: dict[str, Tensor] = {}
    for entry in header.tensors:
        if entry.name not in IGNORED:
            value = _dequantise(path, content, entry)
            weights.update(_canonical(path, config, entry.name, value))
    return config, weights


def _map(path: Path) -> memoryview:
    try:
        with path.open("rb") as opened:
            return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"{path.name} cannot be read: {error}.") from error


def _dequantise(path: Path, content: memoryview, entry: TensorEntry) -> Tensor:
    raw = np.frombuffer(content, np.uint8, entry.size_bytes, entry.start)
    rows = raw.reshape(*entry.shape[:-1], entry.row_bytes)
    try:
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
    layer, kind = match.groups() if match else ("", "")
    prefix = f"model.layers.{layer}"
    if kind in LAYER_NAMES:
        heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(kind)
        straight = value if heads is None else _halves(path, name, value, heads)
        return {f"{prefix}.{LAYER_NAMES[kind]}.weight": straight}
    if kind in EXPERT_NAMES:
        return {
            f"{prefix}.block_sparse_moe.experts.{expert_id}.{EXPERT_NAMES[kind]}.weight": expert
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
