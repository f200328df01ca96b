"""Keys and values, or latents, in fixed blocks, and attention over block tables.

How a block is laid out is the matter of `kv_planes`; which sequence owns which block that of the
block manager. This module touches tensors only and expects the caller to be in
`torch.inference_mode()`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from understudy.errors import FailedPrecondition, Internal
from understudy.model import kv_planes
from understudy.model.attention import LatentHeads
from understudy.model.config import ModelConfig
from understudy.model.placing import CPU


class PagedKv:
    """Storage for `num_blocks` blocks of `block_size` tokens, whatever each layer caches."""

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
    ) -> None:
        """Reserve the blocks on `device`; `dtype` is one of `kv_planes.DTYPES`."""
        if num_blocks <= 0 or block_size <= 0:
            raise Internal(f"Paged KV needs blocks, got {num_blocks} of {block_size} tokens.")
        if dtype not in kv_planes.DTYPES.values():
            raise Internal(f"KV cannot be cached as {dtype}.")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.block_bytes = kv_planes.block_bytes(config, block_size, dtype)
        # Zeros, so that padding read past a sequence's end is finite before it is masked.
        self._storage = torch.zeros(
            (num_blocks, self.block_bytes), dtype=torch.uint8, device=device
        )
        self._planes = list(kv_planes.cut_planes(self._storage, config, block_size, dtype))
        self._config, self._dtype = config, dtype

    @property
    def device(self) -> torch.device:
        """Where the blocks lie, and with them everything that a step makes."""
        return self._storage.device

    def stacked(self) -> kv_planes.Plane:
        """Return keys and values of all layers as one plane; see `kv_planes.stack_planes`."""
        return kv_planes.stack_planes(self._storage, self._config, self.block_size, self._dtype)

    def planes(self, layer: int) -> tuple[kv_planes.Plane, ...]:
        """Return what an attention layer caches, in the order of the config's cache entries."""
        return self._planes[layer]

    def export_block(self, block: int) -> bytes:
        """Return one block as bytes `[layer][entry][head][token][width]` in the KV's dtype."""
        self._check(block)
        return self._storage[block].to(CPU).numpy().tobytes()

    def import_block(self, block: int, content: bytes | bytearray | memoryview) -> None:
        """Overwrite one block with exported bytes.

        Raises FailedPrecondition where the length differs from `block_bytes`.
        """
        self._check(block)
        if len(content) != self.block_bytes:
            raise FailedPrecondition(
                f"A KV block here has {self.block_bytes} bytes, the given one {len(content)}."
            )
        self._storage[block].copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def write(self, layer: int, blocks: Tensor, offsets: Tensor, *entries: Tensor) -> None:
        """Store rows (T, heads, width) of each cache entry at (blocks, offsets), both (T,)."""
        for plane, rows in zip(self._planes[layer], entries, strict=True):
            plane.write(blocks, offsets, rows)

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Return both entries of tables (B, n) in float32: (B, heads, n * block_size, width)."""
        first, second = self._planes[layer]
        return first.read(blocks), second.read(blocks)

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
        slots = [_slots(kv, sequence) for sequence in sequences]
        self._write_blocks = torch.cat([blocks for blocks, _ in slots])
        self._write_offsets = torch.cat([offsets for _, offsets in slots])
        starts = [0]
        for sequence in sequences:
            starts.append(starts[-1] + sequence.num_new)
        pairs = list(zip(starts, sequences, strict=False))
        self._num_rows = starts[-1]
        self._chunks = [_chunk(kv, *pair) for pair in pairs if pair[1].num_new > 1]
        self._decodes = _decodes(kv, [pair for pair in pairs if pair[1].num_new == 1])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the new keys and values, then attend over everything each sequence has."""
        self._write(layer, query, key, value)
        attended = torch.empty_like(query)
        if self._decodes is not None:
            rows = self._decodes.rows
            keys, values = self._kv.read(layer, self._decodes.blocks)
            attended[rows] = _attend_decodes(query[rows], keys, values, self._decodes.mask, None)
        for chunk in self._chunks:
            keys, values = self._kv.read(layer, chunk.blocks)
            attended[chunk.rows] = _attend_chunk(query[chunk.rows], keys, values, chunk.mask, None)
        return attended

    def attend_latent(
        self, layer: int, query: Tensor, latent: Tensor, rope_key: Tensor, heads: LatentHeads
    ) -> Tensor:
        """Store the new latents, then attend: decodes over latents, chunks over expanded ones."""
        self._write(layer, query, latent[:, None], rope_key[:, None])
        attended = query.new_empty(*query.shape[:2], heads.value_dim)
        if self._decodes is not None:
            rows, mask = self._decodes.rows, self._decodes.mask
            latents, rope_keys = self._kv.read(layer, self._decodes.blocks)
            keys, absorbed = torch.cat((latents, rope_keys), dim=-1), heads.absorb(query[rows])
            seen = _attend_decodes(absorbed, keys, latents, mask, heads.scale)
            attended[rows] = heads.lift(seen)
        for chunk in self._chunks:
            latents, rope_keys = self._kv.read(layer, chunk.blocks)
            end = chunk.mask.shape[1]
            keys, values = heads.expand(latents[0, 0, :end], rope_keys[0, 0, :end])
            attended[chunk.rows] = _attend_chunk(
                query[chunk.rows],
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                chunk.mask,
                heads.scale,
            )
        return attended

    def _write(self, layer: int, query: Tensor, *entries: Tensor) -> None:
        if query.shape[0] != self._num_rows:
            raise Internal(f"The step has {query.shape[0]} rows, its sequences {self._num_rows}.")
        self._kv.write(layer, self._write_blocks, self._write_offsets, *entries)


def _attend_decodes(
    query: Tensor,  # (B, H, width)
    keys: Tensor,  # (B, kv_heads, S, width)
    values: Tensor,
    mask: Tensor,
    scale: float | None,
) -> Tensor:
    # Heads that share keys become query rows of one head: nothing is repeated in memory.
    grouped = query.view(query.shape[0], keys.shape[1], -1, query.shape[2])
    attended = functional.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=mask, scale=scale
    )
    return attended.flatten(1, 2)


def _attend_chunk(
    query: Tensor,  # (T, H, width)
    keys: Tensor,  # (1, kv_heads, S, width)
    values: Tensor,
    mask: Tensor,
    scale: float | None,
) -> Tensor:
    end = mask.shape[1]
    attended = functional.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys[:, :, :end],
        values[:, :, :end],
        attn_mask=mask,
        scale=scale,
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


def _slots(kv: PagedKv, sequence: PagedSequence) -> tuple[Tensor, Tensor]:
    positions = torch.arange(sequence.num_cached, sequence.end, device=kv.device)
    blocks = torch.tensor(sequence.blocks, device=kv.device)
    return blocks[positions // kv.block_size], positions % kv.block_size


def _used_blocks(block_size: int, sequence: PagedSequence) -> list[int]:
    return list(sequence.blocks[: -(-sequence.end // block_size)])


def _decodes(kv: PagedKv, pairs: Sequence[tuple[int, PagedSequence]]) -> _Decodes | None:
    if not pairs:
        return None
    device = kv.device
    tables = [_used_blocks(kv.block_size, sequence) for _, sequence in pairs]
    longest = max(map(len, tables))
    # Padding repeats a block of the same sequence, so no foreign value is ever read.
    padded = [table + table[-1:] * (longest - len(table)) for table in tables]
    blocks = torch.tensor(padded, device=device)
    ends = torch.tensor([sequence.end for _, sequence in pairs], device=device)
    is_hidden = torch.arange(longest * kv.block_size, device=device) >= ends[:, None]
    return _Decodes(
        rows=torch.tensor([row for row, _ in pairs], device=device),
        blocks=blocks,
        mask=_additive(is_hidden[:, None, None]),
    )


def _chunk(kv: PagedKv, start: int, sequence: PagedSequence) -> _Chunk:
    positions = torch.arange(sequence.num_cached, sequence.end, device=kv.device)
    is_hidden = torch.arange(sequence.end, device=kv.device) > positions[:, None]
    return _Chunk(
        rows=slice(start, start + sequence.num_new),
        blocks=torch.tensor([_used_blocks(kv.block_size, sequence)], device=kv.device),
        mask=_additive(is_hidden),
    )


def _additive(is_hidden: Tensor) -> Tensor:
    return torch.zeros(is_hidden.shape, device=is_hidden.device).masked_fill(is_hidden, -torch.inf)
