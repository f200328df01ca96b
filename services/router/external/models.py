"""What an engine's list of models says of the one a pool needs; pure."""

from __future__ import annotations

import json
from typing import Final

from services.router.external.port import EngineMisfit

MAX_MODELS_BYTES: Final = 1 << 20


def read_context(data: bytes, model: str) -> int:
    """Return the context that the list names for a model; 0 where it names none.

    A list that is too long or has another form says nothing. Raises EngineMisfit for one without
    the model.
    """
    if len(data) > MAX_MODELS_BYTES:
        return 0
    try:
        entries = json.loads(data)["data"]
        cards = {str(entry["id"]): entry for entry in entries}
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
    if model not in cards:
        known = ", ".join(sorted(cards)[:8]) or "none"
        raise EngineMisfit(f"It does not serve the model {model!r}; it serves: {known}.")
    context = cards[model].get("max_model_len")
    return context if isinstance(context, int) and context > 0 else 0
