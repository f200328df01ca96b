"""`python -m services.experts.export`: writes a model's bundle, ready to be compiled anywhere.

`ffn` is the feed-forwards of some layers and shards as an expert worker holds them; `decoder` is a
whole small model that decodes several greedy steps in one call. What knows models is here; what
compiles (`understudy_kernels.package`) knows none.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, get_args

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from services.experts.holdings import (
    DIGEST_CHARS,
    held_layers,
    held_shards,
    package_name,
    values_digest,
)
from services.experts.settings import parse_ids
from understudy.errors import FailedPrecondition, UnderstudyError
from understudy.model.attention import LatentHeads
from understudy.model.config import ModelConfig
from understudy.model.ffn import (
    FfnWeights,
    dense_weights,
    expert_range,
    expert_weights,
    ffn_shard,
)
from understudy.model.linear import Matrix, Plain, Weights
from understudy.model.locate import locate_model
from understudy.model.transformer import Transformer
from understudy.model.weights import LoadedModel, MatrixType, load_model
from understudy_kernels.packaging.bundle import Bundle, write_bundle
from understudy_kernels.packaging.serving.runtime import DENSE

MAX_TOKENS: Final = 1 << 16
MAX_INNER: Final = 1 << 20
MAX_SEQUENCES: Final = 1 << 10


def export_ffn(
    model: LoadedModel,
    directory: Path,
    layers: Sequence[int] | None = None,
    expert_ids: Sequence[int] | None = None,
) -> Bundle:
    """Write the bundle of some layers and shards; None means all.

    Raises FailedPrecondition where they do not divide the model.
    """
    config = model.config
    chosen_layers, shards = held_layers(config, layers), held_shards(config, expert_ids)
    weights: dict[str, Tensor] = {}
    for layer in chosen_layers:
        for shard in shards:
            for unit, part in _units(config, model.stored, layer, shard).items():
                prefix = f"{layer}.{shard}.{unit}"
                weights |= {
                    f"{prefix}.gate": _tensor(part.gate),
                    f"{prefix}.up": _tensor(part.up),
                    f"{prefix}.down": _tensor(part.down),
                }
    shape = {
        "hidden_size": config.hidden_size,
        "num_experts": config.num_experts,
        "num_experts_per_token": config.num_experts_per_token,
        "num_ffn_shards": config.num_ffn_shards,
    }
    digest = values_digest(model)
    held = {"layers": _listed(chosen_layers), "shards": _listed(shards)}
    name = package_name("ffn", digest, chosen_layers, shards)
    bundle = Bundle(name, "ffn", digest, shape, held=held)
    first = [weights[name] for name in list(weights)[:3]]
    has_one_size = all(part.shape in {each.shape for each in first} for part in weights.values())
    program = swiglu_program(first, has_one_size=has_one_size)
    return write_bundle(directory, bundle, program, weights)


def swiglu_program(weights: Sequence[Tensor], *, has_one_size: bool = True) -> ExportedProgram:
    """Export one SwiGLU over any number of tokens, its weights as inputs: gate, up, down."""
    tokens = Dim("tokens", min=1, max=MAX_TOKENS)
    hidden = torch.zeros(3, weights[0].shape[1])
    inner = Dim.STATIC if has_one_size else Dim("inner", min=1, max=MAX_INNER)
    ranges = ({0: tokens}, {0: inner}, {0: inner}, {1: inner})
    with torch.no_grad():
        return torch.export.export(_SwiGlu(), (hidden, *weights), dynamic_shapes=ranges)


def export_decoder(model: LoadedModel, directory: Path) -> Bundle:
    """Write the bundle of a whole model: a step of greedy decoding with its cache as an input.

    Raises FailedPrecondition for a mixture of experts, and for attention over latents.
    """
    if model.config.is_moe:
        raise FailedPrecondition(
            f"{model.config.family} is a mixture of experts; whole models are packaged for small"
            " dense ones. Package its feed-forwards (`ffn`)."
        )
    # One sum per feed-forward: nobody shares this model's shards, so there is no order to keep.
    config = replace(model.config, num_ffn_shards=1)
    weights = {**model.weights, **{name: part.dense() for name, part in model.packed.items()}}
    names, digest = tuple(weights), values_digest(model)
    shape = {
        "num_layers": config.num_layers,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_positions": config.max_positions,
    }
    bundle = Bundle(decoder_name(model), "decoder", digest, shape, names)
    return write_bundle(directory, bundle, decoder_program(config, weights), weights)


def decoder_name(model: LoadedModel) -> str:
    """Return what the package of a whole model is called."""
    return f"decoder-{values_digest(model)[:DIGEST_CHARS]}"


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


def _units(config: ModelConfig, weights: Weights, layer: int, shard: int) -> dict[str, FfnWeights]:
    if config.is_mixture(layer):
        ids = expert_range(config, shard)
        return {str(id_): expert_weights(weights, layer, id_) for id_ in ids}
    size = config.ffn_size // config.num_ffn_shards
    return {DENSE: dense_weights(weights, layer).slice(shard * size, (shard + 1) * size)}


def _listed(ids: Sequence[int]) -> str:
    return ",".join(map(str, ids))


def _tensor(part: Matrix) -> Tensor:
    return part.weight if isinstance(part, Plain) else part.dense()


def main(arguments: Sequence[str]) -> int:
    """Write one bundle; returns the exit status."""
    parser = argparse.ArgumentParser("python -m services.experts.export", description=__doc__)
    parser.add_argument("kind", choices=("ffn", "decoder"), help="what to export")
    parser.add_argument("--model", required=True, help="weights, as for the expert worker")
    parser.add_argument("--bundle", type=Path, required=True, help="folder to write")
    parser.add_argument("--layers", default="all", help="layers of an ffn bundle, such as 0-14")
    parser.add_argument("--expert-ids", default="all", help="experts or shards of an ffn bundle")
    parser.add_argument(
        "--weights-dtype",
        choices=get_args(MatrixType),
        default="float32",
        help="type that matrices of 32 bits are rounded to, as the expert worker's setting",
    )
    chosen = parser.parse_args(arguments)
    try:
        model = load_model(locate_model(chosen.model), chosen.weights_dtype)
        if chosen.kind == "decoder":
            bundle = export_decoder(model, chosen.bundle)
        else:
            layers = parse_ids(chosen.layers, "--layers")
            expert_ids = parse_ids(chosen.expert_ids, "--expert-ids")
            bundle = export_ffn(model, chosen.bundle, layers, expert_ids)
    except UnderstudyError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(f"{bundle.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
