"""The bar at which an SLM answer stands: least expected cost under a quality floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Operation:
    """How the pair behaves at one threshold, measured on the samples it was chosen on."""

    threshold: float | None
    """Least confidence that is accepted; None when no threshold meets the floor."""
    coverage: float
    """Share of requests the SLM answers."""
    quality: float
    """Share of requests the pair answers right."""
    llm_quality: float
    """Share of requests the LLM alone answers right."""
    cost_ratio: float
    """Expected cost of the pair over the cost of the LLM alone."""


def choose_threshold(
    confidences: Floats,
    slm_passed: Bools,
    llm_passed: Bools,
    cost_slm: Floats | float,
    cost_llm: Floats | float,
    max_loss: float,
    z: float = 0.0,
) -> Operation:
    """Return the cheapest operation whose quality is at most `max_loss` below the LLM's.

    All arrays are (N,) over the same requests; costs are per request or one for all. With `z` the
    floor holds for the paired lower bound mean - z * standard error instead of the mean. A pair
    that would cost more than the LLM alone is no operation: its threshold is None.
    """
    num = confidences.size
    slm_costs = np.broadcast_to(np.asarray(cost_slm, dtype=np.float64), num)
    llm_costs = np.broadcast_to(np.asarray(cost_llm, dtype=np.float64), num)
    order = np.argsort(-confidences, kind="stable")
    ranked = confidences[order]
    gains = slm_passed[order].astype(np.float64) - llm_passed[order].astype(np.float64)
    means = np.cumsum(gains) / num  # (N,) paired difference when the first i + 1 are accepted
    errors = np.sqrt(np.maximum(np.cumsum(gains**2) / num - means**2, 0.0) / num)
    is_last_of_ties = np.append(ranked[1:] != ranked[:-1], True)
    is_allowed = is_last_of_ties & (means - z * errors >= -max_loss)
    ratios = 1.0 + (slm_costs.sum() - np.cumsum(llm_costs[order])) / llm_costs.sum()
    llm_quality = float(llm_passed.mean())
    candidates = np.flatnonzero(is_allowed & (ratios < 1.0))
    if candidates.size == 0:
        return Operation(None, 0.0, llm_quality, llm_quality, 1.0)
    best = int(candidates[np.argmin(ratios[candidates])])
    return Operation(
        threshold=float(ranked[best]),
        coverage=(best + 1) / num,
        quality=llm_quality + float(means[best]),
        llm_quality=llm_quality,
        cost_ratio=float(ratios[best]),
    )
