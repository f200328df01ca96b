"""Greedy decoding of several sequences by a whole model, many steps in one call."""

from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from .files import Compiled, Opened
from .manifest import PackageError

CAPACITY_STEP: Final = 64


class DecoderPackage:
    """A whole model: prompts in, tokens out."""

    def __init__(self, directory: Path, config_digest: str | None = None) -> None:
        """Check and open a package. Raises PackageError."""
        opened = Opened("decoder", directory, config_digest)
        self.manifest, [self._program] = opened.manifest, opened.programs
        self._weights = [opened.weights[name] for name in self.manifest.weight_names]

    def generate(self, tokens: Tensor, lengths: Tensor, num_steps: int) -> Tensor:
        """Return `num_steps` greedy tokens (B, N) after prompts (B, P) of `lengths` (B,).

        Prompts are padded on the right with any token. Raises PackageError for what does not fit.
        """
        self._check(tokens, lengths, num_steps)
        capacity = -(-(tokens.shape[1] + num_steps + 1) // CAPACITY_STEP) * CAPACITY_STEP
        steps = self._begin(lengths, capacity)
        chosen = steps.read(tokens)
        answer = [chosen]
        for _ in range(num_steps - 1):
            chosen = steps.advance(chosen)
            answer.append(chosen)
        return torch.stack(answer, dim=1)

    def _begin(self, lengths: Tensor, capacity: int) -> "_Steps":
        kind = _PackedSteps if self.manifest.needs_library else _DenseSteps
        return kind(self._program, self._weights, self.manifest.shape, lengths, capacity)

    def _check(self, tokens: Tensor, lengths: Tensor, num_steps: int) -> None:
        shape = self.manifest.shape
        if tokens.dim() != 2 or lengths.shape != tokens.shape[:1] or not tokens.numel():
            raise PackageError(f"Prompts {tuple(tokens.shape)}, lengths {tuple(lengths.shape)}.")
        longest = tokens.shape[1] + num_steps
        if num_steps < 1 or longest > shape["max_positions"]:
            raise PackageError(
                f"{longest} positions are asked for; the model has {shape['max_positions']}."
            )
        if int(lengths.min()) < 1 or int(lengths.max()) > tokens.shape[1]:
            raise PackageError("A prompt's length lies outside its row.")
        if int(tokens.min()) < 0 or int(tokens.max()) >= shape["vocab_size"]:
            raise PackageError(f"A token lies outside the vocabulary of {shape['vocab_size']}.")


class _Steps(Protocol):
    """The sequences (B) of one call, from step to step."""

    def read(self, tokens: Tensor) -> Tensor:
        """Return the tokens (B,) after the padded prompts (B, P)."""
        ...

    def advance(self, chosen: Tensor) -> Tensor:
        """Return the tokens (B,) after the last ones, `chosen` (B,)."""
        ...


class _DenseSteps:
    """Rows of all sequences are padded to one width; the program returns what the cache lacks."""

    def __init__(
        self,
        program: Compiled,
        weights: list[Tensor],
        shape: dict[str, int],
        lengths: Tensor,
        capacity: int,
    ) -> None:
        self._program, self._weights, self._lengths = program, weights, lengths
        heads = (len(lengths), capacity, shape["num_kv_heads"], shape["head_dim"])
        self._cache = torch.zeros((shape["num_layers"], 2, *heads))
        self._done = lengths.clone()

    def read(self, tokens: Tensor) -> Tensor:
        """Read prompts (B, P); padding writes to the last place, which no position looks at."""
        column = torch.arange(tokens.shape[1]).expand(tokens.shape)
        last_place = self._cache.shape[3] - 1
        positions = torch.where(column < self._lengths[:, None], column, last_place)
        return self._step(tokens, positions, self._lengths - 1)

    def advance(self, chosen: Tensor) -> Tensor:
        """Read one token a sequence."""
        positions = self._done[:, None]
        self._done = self._done + 1
        return self._step(chosen[:, None], positions, torch.zeros_like(self._lengths))

    def _step(self, tokens: Tensor, positions: Tensor, last: Tensor) -> Tensor:
        inputs = [tokens, positions, last, self._cache, *self._weights]
        chosen, rows = self._program.run(inputs)
        # rows (L, 2, B, T, kv_heads, head_dim): the keys and values of these tokens
        self._cache[:, :, torch.arange(tokens.shape[0])[:, None], positions] = rows
        return chosen


class _PackedSteps:
    """Rows of all sequences lie one after the other; the kernels write to the cache themselves.

    The cache is one block of `capacity` tokens a sequence, as the kernels' paged cache has them.
    """

    def __init__(
        self,
        program: Compiled,
        weights: list[Tensor],
        shape: dict[str, int],
        lengths: Tensor,
        capacity: int,
    ) -> None:
        self._program, self._weights = program, weights
        self._lengths, self._capacity = lengths, capacity
        heads = (capacity, shape["num_kv_heads"], shape["head_dim"])
        self._cache = torch.zeros((len(lengths), shape["num_layers"], 2, *heads))
        self._tables = torch.arange(len(lengths), dtype=torch.int32)[:, None].contiguous()
        self._done = torch.zeros_like(lengths)

    def read(self, tokens: Tensor) -> Tensor:
        """Read prompts (B, P) without their padding."""
        rows = torch.arange(tokens.shape[1]).expand(tokens.shape) < self._lengths[:, None]
        return self._step(tokens[rows], self._lengths)

    def advance(self, chosen: Tensor) -> Tensor:
        """Read one token a sequence."""
        return self._step(chosen, torch.ones_like(self._lengths))

    def _step(self, tokens: Tensor, counts: Tensor) -> Tensor:
        owners = torch.repeat_interleave(counts)
        ends = counts.cumsum(0)
        places = torch.arange(len(tokens)) - (ends - counts)[owners]
        positions = places + self._done[owners]
        slots = owners * self._capacity + positions
        self._done = self._done + counts
        inputs = [
            tokens, positions, slots, self._tables, owners.int(), (positions + 1).int(), ends - 1,
            self._cache, *self._weights,
        ]  # fmt: skip
        return self._program.run(inputs)[0]
