"""Says in one line at load which weights take more memory than their file, and how much."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Expanded:
    """A matrix, or part of one, that is kept wider than its values need."""

    name: str
    format: str
    """What the values came in, such as `Q5_0`."""
    size_bytes: int
    compact_bytes: int
    """What the same values take in that format."""


def report_expanded(expanded: Sequence[Expanded], reason: str) -> None:
    """Log one warning where there are any; `reason` says why, and what to do about it."""
    if not expanded:
        return
    formats = sorted({each.format for each in expanded})
    LOG.warning(
        "%d matrices of %s, the first being %s, are expanded and take %d bytes of memory instead"
        " of %d: %s.",
        len({each.name for each in expanded}),
        ", ".join(formats),
        expanded[0].name,
        sum(each.size_bytes for each in expanded),
        sum(each.compact_bytes for each in expanded),
        reason,
    )
