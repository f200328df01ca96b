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
from typing import get_args

from torch import Tensor
from torch.export import ExportedProgram

from services.experts.holdings import (
    DIGEST_CHARS,
    held_layers,
    held_shards,
    package_name,
    values_digest,
)
from services.experts.packed_programs import packed_decoder_program, packed_swiglu_program
from services.experts.programs import decoder_program, swiglu_program
from services.experts.settings import parse_ids
from understudy.errors import FailedPrecondition, UnderstudyError
from understudy.model.config import ModelConfig
from understudy.model.decoder import Compute, resolve_compute
from understudy.model.ffn import FfnWeights, dense_weights, expert_range, expert_weights
from understudy.model.linear import Matrix, Plain, Weights
from understudy.model.locate import locate_model
from understudy.model.packed import weight_of
from understudy.model.weights import LoadedModel, MatrixType, load_model
from understudy_kernels import PackedFfn, load
from understudy_kernels.packaging.bundle import Bundle, write_bundle
from understudy_kernels.packaging.serving.runtime import DENSE, PARTS


def export_ffn(
    model: LoadedModel,
    directory: Path,
    layers: Sequence[int] | None = None,
    expert_ids: Sequence[int] | None = None,
) -> Bundle:
    """Write the bundle of some layers and shards; None means all.

    A model that was loaded for the kernels keeps its packed weights, and the program calls the
    kernels: sums are the worker's own, bit by bit. One loaded for `reference` is exported as dense
    values that AOTInductor multiplies. Raises FailedPrecondition where layers or shards do not
    divide the model.
    """
    config = model.config
    chosen_layers, shards = held_layers(config, layers), held_shards(config, expert_ids)
    units = {
        f"{layer}.{shard}.{unit}": part
        for layer in chosen_layers
        for shard in shards
        for unit, part in _units(config, model.stored, layer, shard).items()
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
    bundle = Bundle(name, "ffn", digest, shape, held=held, arithmetic=model.compute)
    if model.compute == "reference":
        programs, weights = _dense_ffn(units)
    else:
        programs, weights = _packed_ffn(units, model.compute)
    return write_bundle(directory, bundle, programs, weights)


def export_decoder(model: LoadedModel, directory: Path) -> Bundle:
    """Write the bundle of a whole model: a step of greedy decoding with its cache as an input.

    Through the kernels where the model was loaded for them, as for `export_ffn`. Raises
    FailedPrecondition for a mixture of experts, and for attention over latents.
    """
    if model.config.is_moe:
        raise FailedPrecondition(
            f"{model.config.family} is a mixture of experts; whole models are packaged for small"
            " dense ones. Package its feed-forwards (`ffn`)."
        )
    config = model.config
    shape = {
        "num_layers": config.num_layers,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_positions": config.max_positions,
    }
    if model.compute == "reference":
        # One sum per feed-forward: nobody shares this model's shards, so no order has to be kept.
        weights: Mapping[str, Tensor] = model.weights
        program = decoder_program(replace(config, num_ffn_shards=1), weights)
    else:
        load()
        step = packed_decoder_program(config, model.stored, is_exact=model.compute == "exact")
        program, weights = step.program, step.weights
    bundle = Bundle(
        decoder_name(model),
        "decoder",
        values_digest(model),
        shape,
        tuple(weights),
        arithmetic=model.compute,
    )
    return write_bundle(directory, bundle, [program], weights)


def decoder_name(model: LoadedModel) -> str:
    """Return what the package of a whole model is called."""
    return f"decoder-{values_digest(model)[:DIGEST_CHARS]}"


def _units(config: ModelConfig, weights: Weights, layer: int, shard: int) -> dict[str, FfnWeights]:
    if config.is_mixture(layer):
        ids = expert_range(config, shard)
        return {str(id_): expert_weights(weights, layer, id_) for id_ in ids}
    size = config.ffn_size // config.num_ffn_shards
    return {DENSE: dense_weights(weights, layer).slice(shard * size, (shard + 1) * size)}


_Programs = tuple[list[ExportedProgram], dict[str, Tensor]]
"""Programs, and weights by name, in which the program's number stands."""


def _dense_ffn(units: Mapping[str, FfnWeights]) -> _Programs:
    weights = {
        f"{prefix}.0.{name}": _tensor(part)
        for prefix, unit in units.items()
        for name, part in zip(PARTS, (unit.gate, unit.up, unit.down), strict=True)
    }
    first = [weights[name] for name in list(weights)[: len(PARTS)]]
    has_one_size = all(part.shape in {each.shape for each in first} for part in weights.values())
    return [swiglu_program(first, has_one_size=has_one_size)], weights


def _packed_ffn(units: Mapping[str, FfnWeights], compute: Compute) -> _Programs:
    load()
    kinds: dict[object, int] = {}
    programs: list[ExportedProgram] = []
    weights: dict[str, Tensor] = {}
    for prefix, unit in units.items():
        ffn = PackedFfn(*map(weight_of, (unit.gate, unit.up, unit.down)))
        kind = (*ffn.formats, ffn.gate.num_out)
        if kind not in kinds:
            kinds[kind] = len(programs)
            programs.append(packed_swiglu_program(ffn, is_exact=compute == "exact"))
        for name, part in zip(PARTS, (ffn.gate, ffn.up, ffn.down), strict=True):
            weights[f"{prefix}.{kinds[kind]}.{name}"] = part.data
    return programs, weights


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
    parser.add_argument(
        "--compute",
        choices=get_args(Compute),
        default="reference",
        help="reference: float32 values, compiled for this kind of machine; exact, fast: packed"
        " weights and the compiled kernels, the same bits as workers with that setting",
    )
    chosen = parser.parse_args(arguments)
    try:
        compute = resolve_compute(chosen.compute)
        model = load_model(locate_model(chosen.model), chosen.weights_dtype, compute)
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
