"""Which services call which, as traces show it."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.telemetry.schema import CALLER, Schema
from understudy.local.traces import Trace


def edges_of(traces: Iterable[Trace], schema: Schema) -> set[tuple[str, str]]:
    """Return the edges between services; every span stands below one that the schema allows."""
    seen = set()
    for trace in traces:
        known = {span.span_id: span for span in trace.spans}
        for span in trace.spans:
            above = known.get(span.parent_id)
            parent = CALLER if above is None else above.name
            assert parent in schema.spans[span.name].parents, f"{span.name} below {parent}"
            source = CALLER if above is None else above.service.partition("-")[0]
            seen.add((source, span.service.partition("-")[0]))
    return {edge for edge in seen if edge[0] != edge[1]}
