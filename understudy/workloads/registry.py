"""The workloads this release knows, by name and by tool set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from understudy.errors import NotFound
from understudy.workloads.snips.workload import Snips
from understudy.workloads.workload import Json, Workload, tool_set_hash


@cache
def _workloads() -> dict[str, Workload]:
    known: list[Workload] = [Snips()]
    return {workload.name: workload for workload in known}


@cache
def _by_tools() -> dict[str, Workload]:
    return {tool_set_hash(workload.tools): workload for workload in _workloads().values()}


def workload_names() -> list[str]:
    """Return the names of all workloads, sorted."""
    return sorted(_workloads())


def find_workload(name: str) -> Workload:
    """Return a workload by name; raises NotFound listing the known ones."""
    workload = _workloads().get(name)
    if workload is None:
        raise NotFound(
            f"There is no workload {name!r}; known are: {', '.join(workload_names())}.",
            {"field": "workload"},
        )
    return workload


def workload_by_tools(tools: Sequence[Json]) -> Workload | None:
    """Return the workload with exactly this tool set, or None."""
    return _by_tools().get(tool_set_hash(tools)) if tools else None
