"""Workloads are found by name and by their exact tools."""

import pytest

from understudy.errors import NotFound
from understudy.workloads import find_workload, tool_set_hash, workload_by_tools, workload_names


def test_snips_is_found_by_name() -> None:
    assert "snips" in workload_names()
    assert find_workload("snips").output_type == "tool_call"


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(NotFound, match="'snaps'; known are: snips"):
        find_workload("snaps")


def test_the_order_of_tools_does_not_matter() -> None:
    tools = find_workload("snips").tools
    found = workload_by_tools(list(reversed(tools)))
    assert found is not None
    assert found.name == "snips"


def test_any_change_of_a_tool_is_another_tool_set() -> None:
    tools = [dict(tool) for tool in find_workload("snips").tools]
    fewer = tools[1:]
    assert workload_by_tools(fewer) is None
    assert tool_set_hash(fewer) != tool_set_hash(tools)
    assert workload_by_tools([]) is None
