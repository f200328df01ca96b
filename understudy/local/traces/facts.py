"""What is worth telling about a span beside its name and times, in few words."""

from collections.abc import Mapping
from typing import Final

from understudy.local.traces.spans import Span, Value
from understudy.telemetry import names

_LABELS: Final[Mapping[str, str]] = {
    names.WORKLOAD: "workload",
    names.POOL: "pool",
    names.REASON: "reason",
    names.CONFIDENCE: "confidence",
    names.THRESHOLD: "threshold",
    names.ATTEMPT_TOKENS: "tokens",
    names.COMPUTED_POSITIONS: "positions",
    names.PROMPT_TOKENS: "prompt",
    names.CACHED_TOKENS: "cached",
    names.COMPUTED_TOKENS: "computed",
    names.NUM_STEPS: "steps",
    names.TOKENS: "rows",
    names.CHUNKS: "chunks",
    names.CHUNK_HITS: "hits",
    names.SIZE_BYTES: "bytes",
    names.COST: "cost",
}


def facts(span: Span) -> str:
    """The span's main attributes on one line, its failure first."""
    parts = [f"failed: {span.status_message or 'no reason given'}"] if span.is_error else []
    first, count = (span.attributes.get(key) for key in (names.LAYER_FIRST, names.LAYER_COUNT))
    if isinstance(first, int) and isinstance(count, int):
        parts.append(f"layers {first}-{first + count - 1}")
    parts += [
        f"{label} {_short(span.attributes[key])}"
        for key, label in _LABELS.items()
        if key in span.attributes
    ]
    return printable("  ".join(parts))


def milliseconds(duration_ms: float) -> str:
    """A duration for people: `0.42 ms`, `18.3 ms`, `1.24 s`."""
    if duration_ms >= 1000:
        return f"{duration_ms / 1000:.2f} s"
    return f"{duration_ms:.2f} ms" if duration_ms < 10 else f"{duration_ms:.1f} ms"


def printable(text: str) -> str:
    """The text with control characters replaced, so that it cannot steer a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _short(value: Value) -> str:
    if isinstance(value, tuple):
        return ", ".join(_short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
