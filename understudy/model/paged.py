"""Keys and values in fixed blocks, and attention over block tables.

Blocks are stored block-major, `[block][layer][K|V][token][kv_head][dim]`, so that one block is one
contiguous run of bytes: what the KV tier stores and what a restarted worker reads back. Which
sequence owns which block is the block manager's business; this module touches tensors only and
expects the caller to be in `torch.inference_mode()`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from understudy.errors import FailedPrecondition, Internal
from understudy.model.config import ModelConfig


class PagedKv:
    """Storage for `num_blocks` blocks of `block_size` tokens, all layers, keys and values."""

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if num_blocks <= 0 or block_size <= 0:
            raise Internal(f"Paged KV needs blocks, got {num_blocks} of {block_size} tokens.")
        self.num_blocks, self.block_size = num_blocks, block_size
        inner = (config.num_layers, 2, block_size, config.num_kv_heads, config.head_dim)
        # Zeros, so that padding read past a sequence's end is finite before it is masked.
        self._storage = torch.zeros((num_blocks, *inner), dtype=dtype)

    @property
    def block_bytes(self) -> int:
        """The size of one exported block."""
        return self._storage[0].numel() * self._storage.element_size()

    def export_block(self, block: int) -> bytes:
        """Return one block as bytes `[layer][K|V][token][kv_head][dim]` in the storage's dtype."""
        self._check(block)
        return self._storage[block].view(torch.uint8).numpy().tobytes()

    def import_block(self, block: int, content: bytes | bytearray | memoryview) -> None:
        """Overwrite one block with exported bytes.

        Raises FailedPrecondition where the length differs from `block_bytes`.
        """
        self._check(block)
        if len(content) != self.block_bytes:
            raise FailedPrecondition(
                f"A KV block here has {self.block_bytes} bytes, the given one {len(content)}."
            )
        source = torch.frombuffer(bytearray(content), dtype=self._storage.dtype)
        self._storage[block].copy_(source.view(self._storage.shape[1:]))

    def write(
        self, layer: int, blocks: Tensor, offsets: Tensor, key: Tensor, value: Tensor
    ) -> None:
        """Store key and value rows (T, kv_heads, head_dim) at (blocks, offsets), both (T,)."""
        for which, rows in enumerate((key, value)):
            self._storage[:, layer, which][blocks, offsets] = rows.to(self._storage.dtype)

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of tables (B, n): (B, kv_heads, n * block_size, head_dim)."""
        flat = blocks.flatten()
        keys = self._storage[:, layer, 0].index_select(0, flat)
        values = self._storage[:, layer, 1].index_select(0, flat)
        shape = (blocks.shape[0], -1, *keys.shape[2:])
        return keys.view(shape).transpose(1, 2).float(), values.view(shape).transpose(1, 2).float()

    def _check(self, block: int) -> None:
        if not 0 <= block < self.num_blocks:
            raise Internal(f"Block {block} does not exist; there are {self.num_blocks}.")


@dataclass(frozen=True, slots=True)
class PagedSequence:
    """What one sequence brings to a step: its blocks, how many tokens are cached, how many new."""

    blocks: Sequence[int]
    num_cached: int
    num_new: int

    @property
    def end(self) -> int:
        """The number of tokens after this step."""
        return self.num_cached + self.num_new


@dataclass(frozen=True, slots=True)
class _Decodes:
    rows: Tensor  # (B,)
    blocks: Tensor  # (B, n)
    mask: Tensor  # (B, 1, 1, n * block_size), 0 or -inf


@dataclass(frozen=True, slots=True)
class _Chunk:
    rows: slice
    blocks: Tensor  # (1, n)
    mask: Tensor  # (num_new, end), 0 or -inf


class PagedContext:
    """`AttentionContext` over a `PagedKv`: decodes and prompt chunks mixed in one step.

    Rows of the sequences lie back to back in the order given. Decodes attend together, padded to
    the longest; each chunk attends alone. Equals `PackedCausal` over the whole sequences.
    """

    def __init__(self, kv: PagedKv, sequences: Sequence[PagedSequence]) -> None:
        """Check every block table against the storage; a table that does not fit is a bug."""
        self._kv = kv
        for sequence in sequences:
            _check(kv, sequence)
        slots = [_slots(kv.block_size, sequence) for sequence in sequences]
        self._write_blocks = torch.cat([blocks for blocks, _ in slots])
        self._write_offsets = torch.cat([offsets for _, offsets in slots])
        starts = [0]
        for sequence in sequences:
            starts.append(starts[-1] + sequence.num_new)
        pairs = list(zip(starts, sequences, strict=False))
        self._num_rows = starts[-1]
        self._chunks = [_chunk(kv.block_size, *pair) for pair in pairs if pair[1].num_new > 1]
        self._decodes = _decodes(kv.block_size, [pair for pair in pairs if pair[1].num_new == 1])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the new keys and values, then attend over everything each sequence has."""
        if query.shape[0] != self._num_rows:
            raise Internal(f"The step has {query.shape[0]} rows, its sequences {self._num_rows}.")
        self._kv.write(layer, self._write_blocks, self._write_offsets, key, value)
        attended = torch.empty_like(query)
        if self._decodes is not None:
            attended[self._decodes.rows] = self._attend_decodes(layer, query, self._decodes)
        for chunk in self._chunks:
            attended[chunk.rows] = self._attend_chunk(layer, query[chunk.rows], chunk)
        return attended

    def _attend_decodes(self, layer: int, query: Tensor, decodes: _Decodes) -> Tensor:
        keys, values = self._kv.read(layer, decodes.blocks)
        chosen = query[decodes.rows]  # (B, H, head_dim)
        # Heads that share keys become query rows of one head: nothing is repeated in memory.
        grouped = chosen.view(chosen.shape[0], keys.shape[1], -1, chosen.shape[2])
        attended = functional.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=decodes.mask
        )
        return attended.flatten(1, 2)

    def _attend_chunk(self, layer: int, query: Tensor, chunk: _Chunk) -> Tensor:
        keys, values = self._kv.read(layer, chunk.blocks)
        end = chunk.mask.shape[1]
        attended = functional.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys[:, :, :end],
            values[:, :, :end],
            attn_mask=chunk.mask,
            enable_gqa=query.shape[1] != keys.shape[1],
        )
        return attended[0].transpose(0, 1)


def _check(kv: PagedKv, sequence: PagedSequence) -> None:
    capacity = len(sequence.blocks) * kv.block_size
    if sequence.num_new <= 0 or sequence.num_cached < 0 or sequence.end > capacity:
        raise Internal(
            f"A block table of {capacity} tokens cannot take {sequence.num_new} new tokens after"
            f" {sequence.num_cached}."
        )
    for block in sequence.blocks:
        if not 0 <= block < kv.num_blocks:
            raise Internal(f"Block {block} does not exist; there are {kv.num_blocks}.")


def _slots(block_size: int, sequence: PagedSequence) -> tuple[Tensor, Tensor]:
    positions = torch.arange(sequence.num_cached, sequence.end)
    return torch.tensor(sequence.blocks)[positions // block_size], positions % block_size


def _used_blocks(block_size: int, sequence: PagedSequence) -> list[int]:
    return list(sequence.blocks[: -(-sequence.end // block_size)])


def _decodes(block_size: int, pairs: Sequence[tuple[int, PagedSequence]]) -> _Decodes | None:
    if not pairs:
        return None
    tables = [_used_blocks(block_size, sequence) for _, sequence in pairs]
    longest = max(map(len, tables))
    # Padding repeats a block of the same sequence, so no foreign value is ever read.
    blocks = torch.tensor([table + table[-1:] * (longest - len(table)) for table in tables])
    ends = torch.tensor([sequence.end for _, sequence in pairs])
    is_hidden = torch.arange(longest * block_size) >= ends[:, None]
    return _Decodes(
        rows=torch.tensor([row for row, _ in pairs]),
        blocks=blocks,
        mask=_additive(is_hidden[:, None, None]),
    )


def _chunk(block_size: int, start: int, sequence: PagedSequence) -> _Chunk:
    positions = torch.arange(sequence.num_cached, sequence.end)
    is_hidden = torch.arange(sequence.end) > positions[:, None]
    return _Chunk(
        rows=slice(start, start + sequence.num_new),
        blocks=torch.tensor([_used_blocks(block_size, sequence)]),
        mask=_additive(is_hidden),
    )


def _additive(is_hidden: Tensor) -> Tensor:
    return torch.zeros(is_hidden.shape).masked_fill(is_hidden, -torch.inf)
