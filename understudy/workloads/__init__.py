"""Task definitions: prompts, tools, grammars, verifiers, metrics and datasets.

A workload is what the calibrator, the adapter and the student are made for. The router finds it
by name or by the hash of the exact tool set; anything unknown has no workload and goes to the LLM.
"""

from understudy.workloads.registry import find_workload, workload_by_tools, workload_names
from understudy.workloads.workload import ToolCall, Verdict, Workload, tool_set_hash

__all__ = [
    "ToolCall",
    "Verdict",
    "Workload",
    "find_workload",
    "tool_set_hash",
    "workload_by_tools",
    "workload_names",
]
