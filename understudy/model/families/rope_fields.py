"""Rope scaling as `config.json` and GGUF metadata spell it."""

from collections.abc import Sequence
from typing import Final

from understudy.errors import FailedPrecondition
from understudy.model.fields import Fields
from understudy.model.traits import RopeKind, RopeScaling

_KINDS: Final[dict[str, RopeKind]] = {
    "linear": "linear",
    "dynamic": "dynamic",
    "llama3": "llama3",
    "yarn": "yarn",
    "factors": "factors",
}


def read_rope(fields: Fields, max_positions: int) -> tuple[float, RopeScaling | None, int]:
    """Return theta, scaling and the positions they allow, from old and new spellings alike.

    Raises FailedPrecondition naming a kind of scaling that is not supported.
    """
    section = fields.section("rope_parameters")
    theta = fields.number("rope_theta", section.number("rope_theta", 10_000.0))
    if not _kind(section):
        section = fields.section("rope_scaling")
    for source in (fields, section):
        source.require("partial_rotary_factor", 1.0)
    kind = _kind(section)
    if kind in ("", "default"):
        return theta, None, max_positions
    scaling = _scaling(section, _known(section, kind), max_positions)
    if scaling.kind == "dynamic":
        max_positions = int(max_positions * scaling.factor)
    return theta, scaling, max_positions


def write_rope(theta: float, scaling: RopeScaling | None, max_positions: int) -> dict[str, object]:
    """Return the keys of `config.json` that `read_rope` reads back unchanged."""
    if scaling is None:
        return {"rope_theta": theta, "max_position_embeddings": max_positions}
    section: dict[str, object] = {
        "rope_type": scaling.kind,
        "rope_theta": theta,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "attention_factor": scaling.attention_factor,
        "mscale": scaling.mscale,
        "mscale_all_dim": scaling.mscale_all_dim,
        "truncate": scaling.is_truncated,
        "factors": list(scaling.factors),
    }
    if scaling.kind == "dynamic":
        max_positions = scaling.original_positions
    else:
        section["original_max_position_embeddings"] = scaling.original_positions
    return {
        "rope_theta": theta,
        "rope_parameters": section,
        "max_position_embeddings": max_positions,
    }


def read_gguf_rope(fields: Fields, factors: Sequence[float]) -> RopeScaling | None:
    """Return the scaling that metadata, or a table of divisors per frequency, ask for.

    Raises FailedPrecondition naming a kind of scaling that is not supported.
    """
    kind = fields.text("rope.scaling.type") if fields.has("rope.scaling.type") else "none"
    if any(factor != 1.0 for factor in factors):
        return RopeScaling(kind="factors", factors=tuple(factors))
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise FailedPrecondition(
            f"{fields.source} asks for rope scaling {kind!r}; linear and yarn are supported.",
            {"key": "rope.scaling.type"},
        )
    return RopeScaling(
        kind=_KINDS[kind],
        factor=fields.number("rope.scaling.factor"),
        original_positions=fields.integer("rope.scaling.original_context_length", 0),
    )


def _kind(section: Fields) -> str:
    for key in ("rope_type", "type"):
        if section.has(key):
            return section.text(key)
    return ""


def _known(section: Fields, kind: str) -> RopeKind:
    if kind not in _KINDS:
        raise FailedPrecondition(
            f"{section.source} asks for rope scaling {kind!r}; supported are {', '.join(_KINDS)}.",
            {"key": "rope_type"},
        )
    return _KINDS[kind]


def _scaling(section: Fields, kind: RopeKind, max_positions: int) -> RopeScaling:
    original = section.integer("original_max_position_embeddings", max_positions)
    if kind == "dynamic":
        original = max_positions
    implied = max_positions / original if kind == "yarn" and original else None
    factor = 1.0 if kind == "factors" else section.number("factor", implied)
    return RopeScaling(
        kind=kind,
        factor=factor,
        original_positions=0 if kind in ("linear", "factors") else original,
        low_freq_factor=section.number("low_freq_factor", 1.0),
        high_freq_factor=section.number("high_freq_factor", 4.0),
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        attention_factor=section.optional_number("attention_factor"),
        mscale=section.number("mscale", 0.0),
        mscale_all_dim=section.number("mscale_all_dim", 0.0),
        is_truncated=section.flag("truncate", default=True),
        factors=section.numbers("factors"),
    )
