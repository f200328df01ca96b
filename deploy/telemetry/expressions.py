"""Checks PromQL against the schema: names, types, labels and values, without a Prometheus.

It reads as much of the language as dashboards and alerts use; whether Prometheus accepts and can
run an expression is for Prometheus to say.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from deploy.telemetry.schema import Metric, Schema

VARIABLES: Final = {"$__rate_interval": "5m", "$namespace": ".*"}
"""Grafana's variables, and what stands for them where there is no Grafana."""
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[A-Za-z_][\w:]*|\d[\w.]*|=~|!~|!=|==|>=|<=|[^\s]')
_NAME: Final = re.compile(r"[A-Za-z_][\w:]*")
_PLAIN_VALUES: Final = re.compile(r"[\w|]*")
_LABEL_LISTS: Final = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_OPERATORS: Final = frozenset({"and", "or", "unless", "bool", "offset"})
_AGGREGATIONS: Final = frozenset({"sum", "min", "max", "avg", "count", "topk", "bottomk"})
_OF_COUNTERS: Final = frozenset({"rate", "increase", "irate"})
UP: Final = "up"
BUCKET_LABEL: Final = "le"


@dataclass(frozen=True, slots=True)
class Matcher:
    """A condition on one label."""

    label: str
    operator: str
    value: str


@dataclass(frozen=True, slots=True)
class Selector:
    """Samples that an expression reads."""

    name: str
    matchers: tuple[Matcher, ...]
    function: str
    """Innermost function or aggregation around it; empty for none."""
    has_range: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """What an expression reads, and the labels that it groups or joins by."""

    selectors: tuple[Selector, ...]
    labels: frozenset[str]


def plain(expression: str) -> str:
    """Return an expression with Grafana's variables filled in."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def read(expression: str) -> Reading:
    """Take an expression, free of variables, apart."""
    return _Reader(_TOKEN.findall(expression)).read()


class _Reader:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._functions: list[str] = []
        self._pending = ""
        self._selectors: list[Selector] = []
        self._labels: set[str] = set()

    def read(self) -> Reading:
        while self._at < len(self._tokens):
            word = self._take()
            if word == "(":
                self._functions.append(self._pending)
                self._pending = ""
            elif word == ")":
                self._functions.pop()
            elif word in _LABEL_LISTS:
                self._label_list()
            elif _NAME.fullmatch(word) and word not in _OPERATORS:
                self._name(word)
        return Reading(tuple(self._selectors), frozenset(self._labels))

    def _name(self, word: str) -> None:
        if self._next() == "(" or word in _AGGREGATIONS:
            self._pending = word
            return
        matchers = tuple(self._matchers()) if self._next() == "{" else ()
        has_range = self._next() == "["
        if has_range:
            while self._take() != "]":
                pass
        function = self._functions[-1] if self._functions else ""
        self._selectors.append(Selector(word, matchers, function, has_range))

    def _matchers(self) -> Iterator[Matcher]:
        self._take()
        while (label := self._take()) != "}":
            if label != ",":
                yield Matcher(label, self._take(), self._take()[1:-1])

    def _label_list(self) -> None:
        if self._next() == "(":
            self._take()
            while (label := self._take()) != ")":
                self._labels |= {label} - {","}

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""


def problems(
    expression: str, schema: Schema, recorded: Mapping[str, frozenset[str]]
) -> Iterator[str]:
    """Say in what an expression goes beyond the schema; `recorded` are the rules' own series."""
    reading = read(plain(expression))
    known = {BUCKET_LABEL, *schema.target_labels}
    if not reading.selectors:
        yield "It reads nothing."
    for selector in reading.selectors:
        metric = schema.metric_of(selector.name)
        labels = {*(metric.labels if metric else recorded.get(selector.name, ()))}
        known |= labels
        if metric is not None:
            yield from _misuse(selector, metric)
        elif selector.name != UP and selector.name not in recorded:
            yield f"{selector.name} is not declared."
        yield from _wrong_matchers(selector, metric, labels | schema.target_labels.keys())
    if unknown := reading.labels - known:
        yield f"It groups by {sorted(unknown)}, which nothing it reads has."


def _misuse(selector: Selector, metric: Metric) -> Iterator[str]:
    is_counted = selector.function in _OF_COUNTERS
    if metric.type == "gauge" and is_counted:
        yield f"{selector.name} is a gauge; {selector.function} is for what only grows."
    if metric.type != "gauge" and not (is_counted and selector.has_range):
        yield f"{selector.name} only grows: take its rate or its increase."


def _wrong_matchers(selector: Selector, metric: Metric | None, known: set[str]) -> Iterator[str]:
    for matcher in selector.matchers:
        if matcher.label not in known:
            yield f"{selector.name} has no label {matcher.label}."
        values = metric.labels.get(matcher.label) if metric else None
        if values is not None and _PLAIN_VALUES.fullmatch(matcher.value):
            for value in matcher.value.split("|"):
                if not values.allows(value):
                    yield f"The label {matcher.label} of {selector.name} is never {value!r}."
