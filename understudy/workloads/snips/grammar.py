"""Builds the grammar of all proper answers to one utterance.

SNIPS arguments are verbatim spans of the utterance, no word belongs to two of them, and no slot
appears twice; their order is free. Spelling that out would take exponentially many rules, so rules
carry 64 bits (llguidance's parametric grammars): the tool's number, one bit for each slot and each
word that is used up, and one for a list that has its second item.

    slot::_     an argument whose bit is clear
    text::_     a value's first word; `text7::_` is what may follow word 7 inside a value
    item::_     the same inside a list
    next::_     another argument, or the end

Conditions also keep decoding out of dead ends: nothing is opened that no free word could fill.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from understudy.workloads.snips.tools import REPEATABLE, SLOTS

_WORD = re.compile(r"\w+|[^\w\s]")
_TOOL_BITS = 3
_FIRST_WORD_BIT = _TOOL_BITS + max(map(len, SLOTS.values()))
_LIST_BIT = 63
_QUOTE = '"'
MAX_TRACKED_WORDS = _LIST_BIT - _FIRST_WORD_BIT
"""Words after these may be used twice; hardly an utterance has more."""


def grammar_source(utterance: str) -> str:
    """Return the Lark source (llguidance dialect) for one utterance."""
    words = _Words.of(utterance)
    rules = {
        "start": [f"{_quoted(_head(tool))} first::{number}" for number, tool in enumerate(SLOTS)],
        "first::_": ['"}}"', "slot::_"],
        "next::_": ['"}}"', *_continuations(words)],
        "slot::_": list(_slots(words)),
        "items::_": [f'"[\\"" item::clear_bit({_LIST_BIT})'],
        "more::_": [
            f'",\\"" item::set_bit({_LIST_BIT}) %if {words.has_free(1)}',
            f'"]" next::_ %if bit_set({_LIST_BIT})',
        ],
        **dict(_spans(words, "text", "next", "true")),
        **dict(_spans(words, "item", "more", f"or(bit_set({_LIST_BIT}), {words.has_free(2)})")),
    }
    lines = [f"{name}: " + "\n  | ".join(options) for name, options in rules.items()]
    return "\n".join(["%llguidance {}", *lines]) + "\n"


@dataclass(frozen=True, slots=True)
class _Words:
    """The words of an utterance and the gaps before them, as they stand inside a JSON string."""

    texts: list[str]
    gaps: list[str]

    @classmethod
    def of(cls, utterance: str) -> _Words:
        found = list(_WORD.finditer(utterance))
        ends = [0, *(word.end() for word in found)]
        gaps = [utterance[end : word.start()] for end, word in zip(ends, found, strict=False)]
        return cls([_escaped(word.group()) for word in found], [_escaped(gap) for gap in gaps])

    def has_free(self, num_words: int) -> str:
        """Return the condition that so many words are unused."""
        if len(self.texts) > MAX_TRACKED_WORDS:
            return "true"
        end = _FIRST_WORD_BIT + len(self.texts)
        if len(self.texts) < num_words:
            return "not(true)"
        return f"bit_count_le([{_FIRST_WORD_BIT}:{end}], {len(self.texts) - num_words})"

    def used(self, index: int, condition: str) -> str:
        """Return the parameter and condition of using a word."""
        if index >= MAX_TRACKED_WORDS:
            return f"_ %if {condition}"
        bit = _FIRST_WORD_BIT + index
        return f"set_bit({bit}) %if and(bit_clear({bit}), {condition})"


def _is_tool(number: int) -> str:
    return f"eq([0:{_TOOL_BITS}], {number})"


def _continuations(words: _Words) -> Iterator[str]:
    """Yield how another argument follows: while the tool has a free slot and a word is free."""
    for number, slots in enumerate(SLOTS.values()):
        end = _TOOL_BITS + len(slots)
        has_slot = f"bit_count_lt([{_TOOL_BITS}:{end}], {len(slots)})"
        yield f'"," slot::_ %if and({_is_tool(number)}, and({has_slot}, {words.has_free(1)}))'


def _slots(words: _Words) -> Iterator[str]:
    """Yield each slot of each tool, allowed for its tool while its bit is clear."""
    for number, (tool, slots) in enumerate(SLOTS.items()):
        for bit, slot in enumerate(slots, _TOOL_BITS):
            is_free = f"and({_is_tool(number)}, bit_clear({bit}))"
            yield f"{_quoted(_key(slot) + _QUOTE)} text::set_bit({bit}) %if {is_free}"
            if (tool, slot) in REPEATABLE:
                condition = f"and({is_free}, {words.has_free(2)})"
                yield f"{_quoted(_key(slot))} items::set_bit({bit}) %if {condition}"


def _spans(words: _Words, rule: str, after: str, extends: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the rules of values: a run of unused words, closed by a quote."""
    yield (
        f"{rule}::_",
        [
            f"{_quoted(text)} {rule}{index}::{words.used(index, 'true')}"
            for index, text in enumerate(words.texts)
        ],
    )
    for index in range(len(words.texts)):
        options = [f'"\\"" {after}::_']
        following = index + 1
        if following < len(words.texts):
            text = _quoted(words.gaps[following] + words.texts[following])
            options.append(f"{text} {rule}{following}::{words.used(following, extends)}")
        yield f"{rule}{index}::_", options


def _key(slot: str) -> str:
    return f'"{slot}":'


def _head(tool: str) -> str:
    return f'{{"name":"{tool}","arguments":{{'


def _escaped(text: str) -> str:
    """Return text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _quoted(text: str) -> str:
    """Return text as a Lark literal."""
    return json.dumps(text, ensure_ascii=False)
