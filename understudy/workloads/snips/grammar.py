"""Builds the grammar of all proper answers to one utterance.

SNIPS arguments are verbatim spans of the utterance, so every value is constrained to a run of its
words (llguidance's `substring_chunks`). A slot may appear in any order; a slot that appears twice
is left to the verifier, because forbidding it would square the grammar.
"""

from __future__ import annotations

import json
import re

from understudy.workloads.snips.tools import REPEATABLE, SLOTS

_CHUNK = re.compile(r"\w+|\s+|[^\w\s]")


def grammar_source(utterance: str) -> str:
    """Return the Lark source (llguidance dialect) for one utterance."""
    chunks = [_escaped(chunk) for chunk in _CHUNK.findall(utterance)]
    tools = "\n     | ".join(f"{_quoted(_head(name))} {_rule(name)}" for name in SLOTS)
    rules = "\n".join(_rules(name) for name in SLOTS)
    return (
        "%llguidance {}\n"
        f"start: {tools}\n"
        f"{rules}\n"
        'value: "\\"" SPAN "\\""\n'
        'values: value | "[" value ("," value)+ "]"\n'
        "SPAN: WORDS & TRIMMED\n"
        "TRIMMED: /\\S([\\s\\S]*\\S)?/\n"
        f"WORDS: %regex {json.dumps({'substring_chunks': chunks})}\n"
    )


def _escaped(chunk: str) -> str:
    return json.dumps(chunk, ensure_ascii=False)[1:-1]


def _quoted(text: str) -> str:
    return json.dumps(text)


def _head(name: str) -> str:
    return f'{{"name":"{name}","arguments":{{'


def _rule(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _rules(name: str) -> str:
    rule = _rule(name)
    plain = [slot for slot in SLOTS[name] if (name, slot) not in REPEATABLE]
    lists = [slot for slot in SLOTS[name] if (name, slot) in REPEATABLE]
    options = [f"{_quoted(f'{chr(34)}{slot}{chr(34)}:')} value" for slot in plain]
    options += [f"{_quoted(f'{chr(34)}{slot}{chr(34)}:')} values" for slot in lists]
    return f'{rule}: ({rule}_slot ("," {rule}_slot)*)? "}}}}"\n{rule}_slot: {" | ".join(options)}'
