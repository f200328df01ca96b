"""The teacher's opinion at every free position: its top tokens and their log probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from understudy.errors import FailedPrecondition


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Top K tokens at each of N free positions; id -1 where the grammar allows fewer."""

    ids: npt.NDArray[np.int32]  # (N, K)
    logprobs: npt.NDArray[np.float16]  # (N, K), normalised over what the grammar allows


class Teaching:
    """Teacher labels of many examples, in the order of the examples."""

    def __init__(
        self,
        ids: npt.NDArray[np.int32],
        logprobs: npt.NDArray[np.float16],
        ends: npt.NDArray[np.int64],
    ) -> None:
        self._ids, self._logprobs, self._ends = ids, logprobs, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> TopTokens:
        start = int(self._ends[index - 1]) if index else 0
        span = slice(start, int(self._ends[index]))
        return TopTokens(self._ids[span], self._logprobs[span])

    @classmethod
    def pack(cls, labels: Sequence[TopTokens]) -> Teaching:
        """Join the labels of consecutive examples."""
        return cls(
            np.concatenate([label.ids for label in labels]),
            np.concatenate([label.logprobs for label in labels]),
            np.cumsum([len(label.ids) for label in labels]),
        )

    def save(self, path: Path) -> None:
        """Write one npz file, atomically."""
        staging = path.with_suffix(".tmp.npz")
        np.savez(staging, ids=self._ids, logprobs=self._logprobs, ends=self._ends)
        staging.rename(path)

    @classmethod
    def load(cls, path: Path) -> Teaching:
        """Read what save() wrote; anything else is refused."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                return cls(archive["ids"], archive["logprobs"], archive["ends"])
        except (OSError, ValueError, KeyError) as error:
            raise FailedPrecondition(f"The labels {path} cannot be read: {error}") from error
