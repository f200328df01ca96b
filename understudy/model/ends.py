"""What stands before the first layer of a decoder and after its last, as compiled operators."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from understudy.model.compiled_attention import normalised
from understudy.model.config import ModelConfig
from understudy.model.linear import Weights, matrix, vector
from understudy.model.packed import weight_of
from understudy_kernels import PackedLinear, ops


@dataclass(frozen=True, slots=True)
class Ends:
    """Embedding, final norm and head over packed weights."""

    embedding: PackedLinear
    up: PackedLinear | None
    """From the width of a factorised embedding to the model's."""
    norm: Tensor
    down: PackedLinear | None
    head: PackedLinear
    eps: float
    is_exact: bool

    @classmethod
    def of(cls, config: ModelConfig, weights: Weights, *, is_exact: bool) -> Self:
        """Keep references to `weights`, whose matrices are `Packed`."""

        def packed(name: str) -> PackedLinear:
            return weight_of(matrix(weights, f"{name}.weight"))

        embedding = packed("model.embed_tokens")
        is_factorised = config.embedding_size is not None
        return cls(
            embedding=embedding,
            up=packed("model.embed_up_proj") if is_factorised else None,
            norm=vector(weights, "model.norm.weight"),
            down=packed("model.embed_down_proj") if is_factorised else None,
            head=embedding if config.tie_embeddings else packed("lm_head"),
            eps=config.rms_norm_eps,
            is_exact=is_exact,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the hidden states (T, D) before the first layer of `tokens` (T,)."""
        rows = ops.embedding(tokens.contiguous(), self.embedding)
        return rows if self.up is None else ops.linear(rows, self.up, exact=self.is_exact)

    def normalise(self, hidden: Tensor) -> Tensor:
        """Return the final-normed hidden states (T, D)."""
        return normalised(hidden, self.norm, self.eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (T, V) of final-normed hidden states (T, D)."""
        rows = hidden.contiguous()
        if self.down is not None:
            rows = ops.linear(rows, self.down, exact=self.is_exact)
        return ops.linear(rows, self.head, exact=self.is_exact)

    def tensors(self) -> list[Tensor]:
        """Return what `with_tensors` takes, in its order; a tied head comes once."""
        parts = [self.embedding, self.up, self.down]
        if self.head is not self.embedding:
            parts.append(self.head)
        return [self.norm, *(part.data for part in parts if part is not None)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """Return the same ends over other tensors of the same sizes."""
        norm, *rest = tensors
        data = iter(rest)
        embedding = replace(self.embedding, data=next(data))
        up = None if self.up is None else replace(self.up, data=next(data))
        down = None if self.down is None else replace(self.down, data=next(data))
        is_tied = self.head is self.embedding
        head = embedding if is_tied else replace(self.head, data=next(data))
        return replace(self, embedding=embedding, up=up, norm=norm, down=down, head=head)
