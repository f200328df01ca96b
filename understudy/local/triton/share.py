"""How much of the feed-forwards Triton has computed, from the metrics of the expert workers."""

import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from understudy.local.ports import LOOPBACK
from understudy.local.state import PlatformState

TIMEOUT_S: Final = 5.0
EXECUTED: Final = "understudy_experts_executed_total"
FALLBACKS: Final = "understudy_experts_fallbacks_total"


@dataclass(frozen=True, slots=True)
class TritonShare:
    """Frames by who computed them."""

    by_triton: int
    in_process: int
    fallbacks: int
    """Of those in process, the ones that were meant for Triton."""

    def __str__(self) -> str:
        total = self.by_triton + self.in_process
        said = f"Triton computed {self.by_triton:,} of {total:,} feed-forwards of the LLM."
        if not self.fallbacks:
            return said
        return f"{said} Of the rest, {self.fallbacks:,} were meant for it while it was away."


def triton_share(state: PlatformState) -> TritonShare | None:
    """Return the share so far; None where no Triton runs, or a worker does not tell."""
    if all(service.name != "triton" for service in state.services):
        return None
    ports = [each.metrics_port for each in state.services if each.name.startswith("experts-")]
    try:
        return read_share([_metrics(port) for port in ports])
    except OSError:
        return None


def read_share(texts: Iterable[str]) -> TritonShare:
    """Add up what the metrics of several workers say."""
    found = {"triton": 0.0, "in_process": 0.0, FALLBACKS: 0.0}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == EXECUTED:
                    found[sample.labels["place"]] += sample.value
                elif sample.name == FALLBACKS:
                    found[FALLBACKS] += sample.value
    return TritonShare(int(found["triton"]), int(found["in_process"]), int(found[FALLBACKS]))


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=TIMEOUT_S) as answer:
        content: bytes = answer.read()
    return content.decode()
