"""Programs of packages over dense values: what AOTInductor compiles into loops of its own."""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from understudy.errors import FailedPrecondition
from understudy.model.attention import LatentHeads
from understudy.model.config import ModelConfig
from understudy.model.ffn import FfnWeights, ffn_shard
from understudy.model.linear import Plain
from understudy.model.transformer import Transformer

MAX_TOKENS: Final = 1 << 16
MAX_INNER: Final = 1 << 20
MAX_SEQUENCES: Final = 1 << 10


def swiglu_program(weights: Sequence[Tensor], *, has_one_size: bool = True) -> ExportedProgram:
    """Export one SwiGLU over any number of tokens, its weights as inputs: gate, up, down."""
    tokens = Dim("tokens", min=1, max=MAX_TOKENS)
    hidden = torch.zeros(3, weights[0].shape[1])
    inner = Dim.STATIC if has_one_size else Dim("inner", min=1, max=MAX_INNER)
    ranges = ({0: tokens}, {0: inner}, {0: inner}, {1: inner})
    with torch.no_grad():
        return torch.export.export(_SwiGlu(), (hidden, *weights), dynamic_shapes=ranges)


def decoder_program(config: ModelConfig, weights: Mapping[str, Tensor]) -> ExportedProgram:
    """Export one step: tokens and positions (B, T), last rows (B,), cache -> tokens, new rows."""
    batch = Dim("batch", min=1, max=MAX_SEQUENCES)
    width = Dim("width", min=1, max=config.max_positions)
    capacity = Dim("capacity", min=2, max=2 * config.max_positions)
    # Tensors of their own: inputs that are one tensor here would be one input for good.
    tokens, positions = (torch.zeros(3, 5, dtype=torch.int64) for _ in range(2))
    last = torch.zeros(3, dtype=torch.int64)
    cache = torch.zeros(config.num_layers, 2, 3, 64, config.num_kv_heads, config.head_dim)
    places = {0: batch, 1: width}
    ranges = (places, places, {0: batch}, {2: batch, 3: capacity}, [None] * len(weights))
    with torch.no_grad():
        return torch.export.export(
            _DecodeStep(config, tuple(weights)),
            (tokens, positions, last, cache, list(weights.values())),
            dynamic_shapes=ranges,
        )


class _SwiGlu(torch.nn.Module):
    def forward(self, hidden: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return ffn_shard(FfnWeights(Plain(gate), Plain(up), Plain(down)), hidden)


class _DecodeStep(torch.nn.Module):
    def __init__(self, config: ModelConfig, names: tuple[str, ...]) -> None:
        super().__init__()
        self._config, self._names = config, names

    def forward(
        self, tokens: Tensor, positions: Tensor, last: Tensor, cache: Tensor, weights: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        transformer = Transformer(self._config, dict(zip(self._names, weights, strict=True)))
        context = CachedContext(cache, positions)
        hidden = transformer.forward(tokens.flatten(), positions.flatten(), context)
        rows = hidden.view(*tokens.shape, -1)
        chosen = rows[torch.arange(tokens.shape[0]), last]
        return transformer.logits(chosen).argmax(dim=-1), context.rows()


class CachedContext:
    """`AttentionContext` over a cache (L, 2, B, C, kv_heads, head_dim) that it only reads.

    A row sees every place up to its own position; the rows of this step are put in before.
    """

    def __init__(self, cache: Tensor, positions: Tensor) -> None:  # positions (B, T)
        self._cache, self._positions = cache, positions
        self._sequences = torch.arange(positions.shape[0])[:, None]
        places = torch.arange(cache.shape[3])
        self._is_seen = places <= positions[:, :, None]  # (B, T, C)
        self._rows: list[Tensor] = []

    def rows(self) -> Tensor:
        """Return what the cache lacks: keys and values (L, 2, B, T, kv_heads, head_dim)."""
        rows = torch.stack(self._rows)
        return rows.view(-1, 2, *rows.shape[1:])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return what each query row sees; shapes as in `AttentionContext`."""
        batch, width = self._positions.shape
        _, _, _, _, num_kv_heads, head_dim = self._cache.shape
        keys, values = (
            self._with(layer, which, rows.view(batch, width, num_kv_heads, head_dim))
            for which, rows in enumerate((key, value))
        )
        # Heads that share keys become query rows of one head: nothing is repeated in memory.
        grouped = query.view(batch, width, num_kv_heads, -1, head_dim).permute(0, 2, 1, 3, 4)
        group_size = grouped.shape[3]
        is_seen = self._is_seen[:, None].repeat_interleave(group_size, dim=2)
        attended = functional.scaled_dot_product_attention(
            grouped.flatten(2, 3), keys, values, attn_mask=is_seen
        )
        by_head = attended.view(batch, num_kv_heads, width, group_size, head_dim)
        return by_head.permute(0, 2, 1, 3, 4).reshape(batch * width, -1, head_dim)

    def attend_latent(
        self,
        layer: int,  # noqa: ARG002
        query: Tensor,  # noqa: ARG002
        latent: Tensor,  # noqa: ARG002
        rope_key: Tensor,  # noqa: ARG002
        heads: LatentHeads,  # noqa: ARG002
    ) -> Tensor:
        """Raise FailedPrecondition: this cache keeps keys and values by head."""
        raise FailedPrecondition(
            "A packaged model keeps keys and values by head, this one's attention keeps latents."
            " Package its feed-forwards (`ffn`)."
        )

    def _with(self, layer: int, which: int, rows: Tensor) -> Tensor:
        self._rows.append(rows)
        place = (self._sequences, self._positions)
        return self._cache[layer, which].index_put(place, rows).transpose(1, 2)
