"""The seam behind which a weight matrix may be stored in any format.

Every projection of the forward pass and of the experts goes through `Matrix.multiply`. A plain
tensor of 16 bits is cast to the precision of the computation matrix by matrix (LayerCast, arXiv
2506.09501), so 16-bit weights give the arithmetic of 32-bit ones at half the memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Matrix(Protocol):
    """A weight matrix (N, K), quantised or not."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (N, K) that the matrix stands for, whatever it takes in memory."""
        ...

    @property
    def format(self) -> str:
        """What its values are kept in, such as `Q4_K` or `float32`."""
        ...

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        ...

    def multiply(self, hidden: Tensor) -> Tensor:
        """Return `hidden` (T, K) times the transposed matrix, (T, N), in hidden's dtype."""
        ...

    def swiglu(self, up: "Matrix", down: "Matrix", hidden: Tensor) -> Tensor:
        """Return the SwiGLU feed-forward (T, D) of `hidden` (T, D) of which this is the gate."""
        ...

    def rows(self, start: int, stop: int) -> "Matrix":
        """Return the rows [start, stop) in memory of their own layout."""
        ...

    def columns(self, start: int, stop: int) -> "Matrix":
        """Return the columns [start, stop) in memory of their own layout."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Return the rows that `ids` (T,) name, (T, K) float32."""
        ...

    def dense(self) -> Tensor:
        """Return the whole matrix, (N, K) float32."""
        ...

    def to(self, device: torch.device) -> "Matrix":
        """Return the matrix in the memory of `device`."""
        ...


Stored = Tensor | Matrix
Weights = Mapping[str, Stored]
"""Tensors by canonical name; matrices may come as `Matrix`, vectors are plain float32."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A matrix that is a tensor of 32 or 16 bits; gradients flow through it."""

    weight: Tensor  # (N, K)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.weight.shape)

    @property
    def format(self) -> str:
        """The tensor's dtype."""
        return str(self.weight.dtype).removeprefix("torch.")

    @property
    def size_bytes(self) -> int:
        """The tensor's size."""
        return self.weight.nbytes

    def multiply(self, hidden: Tensor) -> Tensor:
        """Multiply in hidden's precision."""
        return functional.linear(hidden, self.weight.to(hidden.dtype))

    def swiglu(self, up: Matrix, down: Matrix, hidden: Tensor) -> Tensor:
        """Multiply one after the other."""
        return swiglu(self, up, down, hidden)

    def rows(self, start: int, stop: int) -> "Plain":
        """Return rows, a view; all rows are the matrix itself."""
        is_whole = start == 0 and stop == self.weight.shape[0]
        return self if is_whole else Plain(self.weight[start:stop])

    def columns(self, start: int, stop: int) -> "Plain":
        """Return columns; all columns are the matrix itself."""
        if start == 0 and stop == self.weight.shape[1]:
            return self
        # A contiguous copy makes the GEMM see the same layout wherever the part lives.
        return Plain(self.weight[:, start:stop].contiguous())

    def embed(self, ids: Tensor) -> Tensor:
        """Return rows in float32."""
        return functional.embedding(ids, self.weight).float()

    def dense(self) -> Tensor:
        """Return the tensor in float32."""
        return self.weight.float()

    def to(self, device: torch.device) -> "Plain":
        """Return the tensor on `device`."""
        return Plain(self.weight.to(device))


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix with or without a bias, called with hidden (T, K) for (T, N)."""

    matrix: Matrix
    bias: Tensor | None = None  # (N,)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the projection of `hidden`."""
        product = self.matrix.multiply(hidden)
        return product if self.bias is None else product + self.bias


def swiglu(gate: Matrix, up: Matrix, down: Matrix, hidden: Tensor) -> Tensor:
    """Return down(silu(gate(hidden)) * up(hidden)) by three products."""
    inner = functional.silu(gate.multiply(hidden))
    return down.multiply(inner * up.multiply(hidden))


def matrix(weights: Weights, name: str) -> Matrix:
    """Return the matrix of that name, whatever its format."""
    stored = weights[name]
    return Plain(stored) if isinstance(stored, Tensor) else stored


def vector(weights: Weights, name: str) -> Tensor:
    """Return a norm, bias or other plain tensor."""
    stored = weights[name]
    return stored if isinstance(stored, Tensor) else stored.dense()


def linear(weights: Weights, prefix: str) -> Linear:
    """Return the projection `<prefix>.weight`, with `<prefix>.bias` where there is one."""
    bias = vector(weights, f"{prefix}.bias") if f"{prefix}.bias" in weights else None
    return Linear(matrix(weights, f"{prefix}.weight"), bias)
