"""Schemas and tools in, token masks out: what a model may write next, and whether it kept to it.

`compile(source) -> Matcher{mask, accept, rollback, forced}` hides the engine (llguidance); an
independent validator (jsonschema-rs) checks finished answers, because no engine is trusted alone.
Refuses what it cannot enforce, by name. Reaches neither torch nor the network.
"""

from understudy.grammar.matcher import CompiledGrammar, Compiler, Matcher, count_allowed
from understudy.grammar.schema import Schema, check_schema, validate
from understudy.grammar.source import GrammarKind, GrammarSource, source_hash
from understudy.grammar.tools import tools_schema

__all__ = [
    "CompiledGrammar",
    "Compiler",
    "GrammarKind",
    "GrammarSource",
    "Matcher",
    "Schema",
    "check_schema",
    "count_allowed",
    "source_hash",
    "tools_schema",
    "validate",
]
