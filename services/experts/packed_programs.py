"""Programs of packages that call the compiled kernels: packed weights, the workers' very bits.

The operators stand in the program as they are, so what AOTInductor compiles around them is little;
the package carries the kernels' library.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from services.experts.programs import MAX_SEQUENCES, MAX_TOKENS
from understudy.errors import FailedPrecondition
from understudy.model.compiled import whole_layers
from understudy.model.config import ModelConfig
from understudy.model.ends import Ends
from understudy.model.linear import Weights
from understudy.model.rope import AngleTable, Rotary
from understudy_kernels import DecoderLayers, PackedFfn, Rows, ops

EXAMPLE_TOKENS: Final = 5
EXAMPLE_SEQUENCES: Final = 3


def packed_swiglu_program(ffn: PackedFfn, *, is_exact: bool) -> ExportedProgram:
    """Export one SwiGLU over any number of tokens; inputs: hidden (T, D), gate, up, down."""
    hidden = torch.zeros(EXAMPLE_TOKENS, ffn.gate.num_in)
    weights = tuple(part.data for part in (ffn.gate, ffn.up, ffn.down))
    ranges = ({0: Dim("tokens", min=1, max=MAX_TOKENS)}, None, None, None)
    with torch.no_grad():
        return torch.export.export(
            _PackedSwiGlu(ffn, is_exact=is_exact), (hidden, *weights), dynamic_shapes=ranges
        )


@dataclass(frozen=True, slots=True)
class PackedStep:
    """A step of a whole model: its program, and the tensors that it takes after the others."""

    program: ExportedProgram
    weights: dict[str, Tensor]


def packed_decoder_program(config: ModelConfig, stored: Weights, *, is_exact: bool) -> PackedStep:
    """Export one step of a model whose layers are one call of the kernels.

    Inputs: tokens (T,), positions (T,), slots (T,), tables (B, 1), sequences (T,), lengths (T,),
    last rows (B,), cache (B, L, 2, C, kv_heads, head_dim), which it writes to, and the weights.
    Output: the greedy token after each last row, (B,). Raises FailedPrecondition for another model.
    """
    ends = Ends.of(config, stored, is_exact=is_exact)
    layers = whole_layers(config, stored, is_exact=is_exact)
    if layers is None:
        raise FailedPrecondition(
            f"{config.family} is not computed in one call of the kernels. Export it with"
            " `--compute reference`, or package its feed-forwards (`ffn`)."
        )
    positions = torch.arange(config.max_positions)
    angles = AngleTable(Rotary(config), positions.device).rows(positions, config.max_positions - 1)
    step = _PackedStep(config, ends, layers, is_exact=is_exact)
    weights = [*angles, *ends.tensors(), *layers.weights, *layers.biases, *layers.head_norms]
    tokens, batch = Dim("tokens", min=1, max=MAX_TOKENS), Dim("batch", min=1, max=MAX_SEQUENCES)
    capacity = Dim("capacity", min=2, max=2 * config.max_positions)
    num_rows, num_sequences = EXAMPLE_TOKENS, EXAMPLE_SEQUENCES
    heads = (config.num_kv_heads, config.head_dim)
    # Tensors of their own: inputs that are one tensor here would be one input for good.
    example = (
        *(torch.zeros(num_rows, dtype=torch.int64) for _ in range(3)),
        torch.zeros(num_sequences, 1, dtype=torch.int32),
        *(torch.zeros(num_rows, dtype=torch.int32) for _ in range(2)),
        torch.zeros(num_sequences, dtype=torch.int64),
        torch.zeros(num_sequences, config.num_layers, 2, 64, *heads),
        [tensor.clone() for tensor in weights],
    )
    row, sequence = {0: tokens}, {0: batch}
    ranges = (row, row, row, sequence, row, row, sequence, {0: batch, 3: capacity})
    with torch.no_grad():
        program = torch.export.export(
            step, example, dynamic_shapes=(*ranges, [None] * len(weights))
        )
    return PackedStep(program, {f"{index}": tensor for index, tensor in enumerate(weights)})


class _PackedSwiGlu(torch.nn.Module):
    def __init__(self, ffn: PackedFfn, *, is_exact: bool) -> None:
        super().__init__()
        self._ffn, self._is_exact = ffn, is_exact

    def forward(self, hidden: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        ffn = PackedFfn(
            replace(self._ffn.gate, data=gate),
            replace(self._ffn.up, data=up),
            replace(self._ffn.down, data=down),
        )
        return ops.swiglu(hidden, ffn, exact=self._is_exact)


class _PackedStep(torch.nn.Module):
    def __init__(
        self, config: ModelConfig, ends: Ends, layers: DecoderLayers, *, is_exact: bool
    ) -> None:
        super().__init__()
        self._ends, self._layers, self._is_exact = ends, layers, is_exact
        self._scale = config.head_dim**-0.5

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        tables: Tensor,
        sequences: Tensor,
        lengths: Tensor,
        last: Tensor,
        cache: Tensor,
        weights: list[Tensor],
    ) -> Tensor:
        cosine, sine, *rest = weights
        ends, layers = self._with(rest)
        hidden = ops.decoder_layers(
            ends.embed(tokens),
            layers,
            (cosine[positions], sine[positions]),
            cache,
            slots,
            Rows(tables, sequences, lengths),
            self._scale,
            exact=self._is_exact,
        )
        return ends.logits(ends.normalise(hidden[last])).argmax(dim=-1)

    def _with(self, tensors: Sequence[Tensor]) -> tuple[Ends, DecoderLayers]:
        sizes = (
            len(self._ends.tensors()),
            len(self._layers.weights),
            len(self._layers.biases),
            len(self._layers.head_norms),
        )
        parts, start = [], 0
        for size in sizes:
            parts.append(list(tensors[start : start + size]))
            start += size
        of_ends, weights, biases, head_norms = parts
        layers = replace(self._layers, weights=weights, biases=biases, head_norms=head_norms)
        return self._ends.with_tensors(of_ends), layers
