"""What the tokens of one attempt say about it.

Only free tokens count: a token that the grammar forced carries no information about the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEATURES: Final = (
    "min_margin",
    "low_margin",
    "mean_margin",
    "min_logprob",
    "sum_logprob",
    "max_mask_loss",
    "log_num_free",
)
"""Names of the features, in the order of `Evidence.features`."""

_NUM_LOW = 3
_FLOOR_LOGPROB = -20.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """The token stream of one attempt; all sequences have one length.

    Margins are P(best) - P(second) and mask losses the probability mass that the mask removed,
    both in [0, 1]; log-probabilities are natural and under the masked distribution.
    """

    logprobs: Sequence[float]
    margins: Sequence[float]
    mask_losses: Sequence[float]
    is_forced: Sequence[bool]
    is_finished: bool
    """Whether the answer ended by itself; one cut at a limit cannot pass."""

    def features(self) -> Floats:
        """Return the features (F,), in the order of FEATURES.

        Without free tokens nothing speaks against the answer: margins are 1, the rest is 0.
        """
        free = ~np.asarray(self.is_forced, dtype=bool)
        if not free.any():
            return np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
        margins = np.sort(np.asarray(self.margins, dtype=np.float64)[free])
        logprobs = np.asarray(self.logprobs, dtype=np.float64)[free].clip(_FLOOR_LOGPROB, 0.0)
        losses = np.asarray(self.mask_losses, dtype=np.float64)[free]
        return np.array(
            [
                margins[0],
                margins[:_NUM_LOW].mean(),
                margins.mean(),
                logprobs.min(),
                logprobs.sum(),
                losses.max(),
                np.log1p(margins.size),
            ]
        )
