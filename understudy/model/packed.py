"""Matrices in the kernels' layout, multiplied without ever being expanded in memory.

For inference only: no gradient flows through them. Cutting one apart moves its blocks; where a cut
runs through a block, the part is kept in a float format with the same values, which canonical cuts
never do (`families.family.shards_for`) and `FfnShards` reports.
"""

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from understudy.errors import Internal
from understudy.model.adapter import Adapter
from understudy.model.gguf import GgufBlocks
from understudy.model.linear import Matrix, swiglu
from understudy.model.safetensors_io import Int8Rows
from understudy_kernels import Format, PackedFfn, PackedLinear, ops
from understudy_kernels.formats import BLOCK, LANES, num_groups
from understudy_kernels.packing import pack_dense, pack_gguf, quantise_int4, quantise_int8
from understudy_kernels.reference.unpack import DTYPES, unpack

QUANTISERS: Final = {"int8": quantise_int8, "int4": quantise_int4}
ROUNDED: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Packed:
    """A `Matrix` of any format of `understudy_kernels`.

    `is_exact` multiplies float32 by float32; otherwise quantised weights meet activations of int8.
    """

    weight: PackedLinear
    is_exact: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (N, K) that the matrix stands for."""
        return (self.weight.num_out, self.weight.num_in)

    @property
    def format(self) -> str:
        """The name of the kernels' format."""
        return self.weight.format.name

    @property
    def size_bytes(self) -> int:
        """The size of the packed weight."""
        return self.weight.data.numel()

    def multiply(self, hidden: Tensor) -> Tensor:
        """Return `hidden` (T, K) float32 times the transposed matrix."""
        return ops.linear(hidden.contiguous(), self.weight, exact=self.is_exact)

    def swiglu(self, up: Matrix, down: Matrix, hidden: Tensor) -> Tensor:
        """Return the feed-forward of which this is the gate, in one call where all are packed."""
        if not (isinstance(up, Packed) and isinstance(down, Packed)):
            return swiglu(self, up, down, hidden)
        ffn = PackedFfn(self.weight, up.weight, down.weight)
        return ops.swiglu(hidden.contiguous(), ffn, exact=self.is_exact)

    def rows(self, start: int, stop: int) -> "Packed":
        """Return rows in memory of their own; all rows are the matrix itself."""
        num_out, num_in = self.weight.num_out, self.weight.num_in
        if (start, stop) == (0, num_out):
            return self
        if start % LANES or (stop % LANES and stop != num_out):
            return self._repacked(self.dense()[start:stop])
        groups = self.weight.data.view(num_groups(num_out), -1)
        data = groups[start // LANES : num_groups(stop)].flatten().clone()
        return Packed(PackedLinear(data, self.weight.format, stop - start, num_in), self.is_exact)

    def columns(self, start: int, stop: int) -> "Packed":
        """Return columns in memory of their own; all columns are the matrix itself."""
        num_out, num_in = self.weight.num_out, self.weight.num_in
        if (start, stop) == (0, num_in):
            return self
        unit = self.weight.format.unit_inputs
        if start % unit or stop % unit:
            return self._repacked(self.dense()[:, start:stop])
        units = self.weight.data.view(num_groups(num_out), -1, self.weight.format.unit_bytes)
        data = units[:, start // unit : stop // unit].contiguous().flatten()
        return Packed(PackedLinear(data, self.weight.format, num_out, stop - start), self.is_exact)

    def embed(self, ids: Tensor) -> Tensor:
        """Return rows in float32."""
        return ops.embedding(ids.contiguous(), self.weight)

    def dense(self) -> Tensor:
        """Return the whole matrix in float32."""
        weight = self.weight
        return unpack(weight.data, weight.format, weight.num_out, weight.num_in)

    def to(self, device: torch.device) -> "Packed":
        """Return the packed bytes on `device`."""
        return replace(self, weight=replace(self.weight, data=self.weight.data.to(device)))

    def _repacked(self, values: Tensor) -> "Packed":
        dtype = DTYPES.get(self.weight.format, torch.float32)
        return Packed(pack_dense(values.to(dtype)), self.is_exact)


def pack(
    name: str,
    stored: Tensor | GgufBlocks | Int8Rows,
    kept_as: str = "float32",
    *,
    is_exact: bool,
) -> Packed:
    """Return the matrix `name` as the kernels read it.

    Tensors are rounded to `kept_as`, a `MatrixType` (to int8 and int4 where their inputs fill
    blocks); other values stay as the file has them, but for the scales of int8 rows, which are
    rounded to float16. Raises FailedPrecondition naming the tensor where it holds what is not a
    finite number.
    """
    if isinstance(stored, Tensor):
        return Packed(_pack_tensor(name, stored, kept_as), is_exact)
    if isinstance(stored, GgufBlocks):
        return Packed(pack_gguf(stored.raw, Format[stored.kind.name], name), is_exact)
    if stored.values.shape[1] % BLOCK:
        return Packed(pack_dense(stored.dense(), name), is_exact)
    return Packed(pack_gguf(_blocks_of(stored), Format.Q8_0, name), is_exact)


def _pack_tensor(name: str, tensor: Tensor, kept_as: str) -> PackedLinear:
    quantise = QUANTISERS.get(kept_as)
    if quantise is not None and tensor.shape[1] % BLOCK == 0:
        return quantise(tensor, name=name)
    rounded = tensor.to(ROUNDED.get(kept_as, tensor.dtype))
    return pack_dense(rounded, name)


def pack_adapter(adapter: Adapter) -> Adapter:
    """Return the adapter in the kernels' layout: float32, whatever the model's arithmetic.

    Rows of one adapter are multiplied together; through torch, a row would notice the others.
    """
    packed = {
        key: Packed(pack_dense(tensor.float(), key), is_exact=True)
        for key, tensor in adapter.tensors.items()
    }
    return replace(adapter, packed=packed)


def weight_of(matrix: Matrix) -> PackedLinear:
    """Return the packed weight of a matrix that is known to be packed."""
    if not isinstance(matrix, Packed):
        raise Internal(f"A compiled model needs packed matrices, not {type(matrix).__name__}.")
    return matrix.weight


def _blocks_of(rows: Int8Rows) -> Tensor:
    num_out, num_in = rows.values.shape
    scales = rows.scales.half().view(torch.uint8).view(num_out, 1, 2)
    blocks = rows.values.view(torch.uint8).view(num_out, num_in // BLOCK, BLOCK)
    return torch.cat((scales.expand(-1, num_in // BLOCK, -1), blocks), dim=-1).flatten(1)
