"""Reads `schema.yaml`: what the platform emits, as typed data that refers to nothing unknown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar, cast

import yaml

SCHEMA: Final = Path(__file__).with_name("schema.yaml")
METRIC_SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}
ATTRIBUTE_TYPES: Final[Mapping[str, type]] = {
    "string": str,
    "bool": bool,
    "int": int,
    "float": float,
}
CALLER: Final = "caller"

MetricType = Literal["counter", "gauge", "histogram"]
EntryT = TypeVar("EntryT", "Metric", "SpanKind")
Node = Mapping[str, object]


class SchemaError(Exception):
    """schema.yaml contradicts itself; the message names the entry."""


@dataclass(frozen=True, slots=True)
class ValueSet:
    """Values that a label or an attribute may have."""

    values: frozenset[str]
    """All of them; empty where settings decide."""
    max_values: int
    """How many there may be."""

    def allows(self, value: str) -> bool:
        """Say whether the value may be; an open set allows any."""
        return not self.values or value in self.values


@dataclass(frozen=True, slots=True)
class Metric:
    """One declared metric."""

    name: str
    """As declared in code, without the suffixes of samples."""
    type: MetricType
    unit: str
    labels: Mapping[str, ValueSet]
    has_exemplars: bool
    convention: str
    """Name in OpenTelemetry's conventions; empty for our own."""
    meaning: str

    @property
    def samples(self) -> tuple[str, ...]:
        """Names under which Prometheus stores it."""
        return tuple(self.name + suffix for suffix in METRIC_SUFFIXES[self.type])


@dataclass(frozen=True, slots=True)
class Attribute:
    """One declared attribute of spans."""

    name: str
    type: str
    values: ValueSet | None
    unit: str
    meaning: str

    def fits(self, value: object) -> bool:
        """Say whether a value has the declared type and is one of the declared values."""
        is_list, kind = self.type.endswith("[]"), ATTRIBUTE_TYPES[self.type.removesuffix("[]")]
        items = value if is_list and isinstance(value, tuple | list) else (value,)
        return isinstance(value, tuple | list) == is_list and all(
            type(item) is kind and (self.values is None or self.values.allows(str(item)))
            for item in items
        )


@dataclass(frozen=True, slots=True)
class SpanKind:
    """One declared kind of span."""

    name: str
    service: str
    kind: str
    parents: frozenset[str]
    required: frozenset[str]
    optional: frozenset[str]
    meaning: str

    @property
    def attributes(self) -> frozenset[str]:
        """All attributes that such a span may have."""
        return self.required | self.optional


@dataclass(frozen=True, slots=True)
class Edge:
    """A connection that one service opens to another."""

    source: str
    target: str
    is_traced: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class Schema:
    """Everything that the platform emits."""

    value_sets: Mapping[str, ValueSet]
    target_labels: Mapping[str, str]
    metrics: Mapping[str, Metric]
    attributes: Mapping[str, Attribute]
    spans: Mapping[str, SpanKind]
    edges: tuple[Edge, ...]

    def metric_of(self, sample: str) -> Metric | None:
        """Return the metric that a sample of this name belongs to."""
        return next((one for one in self.metrics.values() if sample in one.samples), None)

    def traced_edges(self) -> frozenset[tuple[str, str]]:
        """Return the pairs of services whose spans may stand below one another."""
        return frozenset((edge.source, edge.target) for edge in self.edges if edge.is_traced)


def load_schema(path: Path = SCHEMA) -> Schema:
    """Read the schema. Raises SchemaError naming what is incomplete, doubled or unknown."""
    raw = cast("Node", yaml.safe_load(path.read_text(encoding="utf-8")))
    try:
        sets = {name: _value_set(node) for name, node in _nodes(raw["value_sets"])}
        attributes = {
            name: _attribute(name, node, sets) for name, node in _nodes(raw["attributes"])
        }
        schema = Schema(
            value_sets=sets,
            target_labels=cast("Mapping[str, str]", raw["target_labels"]),
            metrics=_by_name([_metric(node, sets) for node in _list(raw["metrics"])]),
            attributes=attributes,
            spans=_by_name([_span(node) for node in _list(raw["spans"])]),
            edges=tuple(_edge(node) for node in _list(raw["edges"])),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise SchemaError(
            f"{path.name} is not of the form its comments describe: {error!r}."
        ) from error
    _check_spans(schema)
    return schema


def _value_set(node: Node) -> ValueSet:
    values = frozenset(cast("list[str]", node.get("values", [])))
    if bool(values) == ("open" in node):
        raise SchemaError(f"A value set has either values or says who bounds it: {node}.")
    return ValueSet(values, len(values) or cast("int", node["max"]))


def _metric(node: Node, sets: Mapping[str, ValueSet]) -> Metric:
    labels = cast("Mapping[str, str]", node["labels"])
    kind = str(node["type"])
    if kind not in METRIC_SUFFIXES:
        raise SchemaError(f"The metric {node['name']} has the unknown type {kind}.")
    return Metric(
        name=str(node["name"]),
        type=cast("MetricType", kind),
        unit=str(node["unit"]),
        labels={label: sets[name] for label, name in labels.items()},
        has_exemplars=bool(node.get("exemplars", False)),
        convention=str(node.get("convention", "")),
        meaning=str(node["meaning"]),
    )


def _attribute(name: str, node: Node, sets: Mapping[str, ValueSet]) -> Attribute:
    kind = str(node["type"])
    if kind.removesuffix("[]") not in ATTRIBUTE_TYPES:
        raise SchemaError(f"The attribute {name} has the unknown type {kind}.")
    values = sets[str(node["values"])] if "values" in node else None
    return Attribute(name, kind, values, str(node.get("unit", "")), str(node["meaning"]))


def _span(node: Node) -> SpanKind:
    parents, required, optional = (
        frozenset(cast("list[str]", node[key])) for key in ("parents", "required", "optional")
    )
    return SpanKind(
        name=str(node["name"]),
        service=str(node["service"]),
        kind=str(node["kind"]),
        parents=parents,
        required=required,
        optional=optional,
        meaning=str(node["meaning"]),
    )


def _edge(node: Node) -> Edge:
    return Edge(str(node["from"]), str(node["to"]), bool(node["traced"]), str(node["meaning"]))


def _check_spans(schema: Schema) -> None:
    """Spans name known attributes and parents, and cross services along traced edges only."""
    for span in schema.spans.values():
        unknown = span.attributes - schema.attributes.keys()
        unknown |= span.parents - {CALLER, *schema.spans}
        if unknown:
            raise SchemaError(f"The span {span.name} names the undeclared {sorted(unknown)}.")
    edges = {pair for pair in crossings(schema) if pair[0] != pair[1]}
    if surplus := edges ^ schema.traced_edges():
        raise SchemaError(f"Spans and traced edges disagree about {sorted(surplus)}.")


def crossings(schema: Schema) -> Iterator[tuple[str, str]]:
    """Yield the services of each span and of the spans above it, outside traces left out."""
    for span in schema.spans.values():
        above = [schema.spans[name].service for name in span.parents if name in schema.spans]
        if not above:
            above = [CALLER]
        for service in above:
            yield service, span.service


def _by_name(entries: Sequence[EntryT]) -> dict[str, EntryT]:
    found: dict[str, EntryT] = {}
    for entry in entries:
        if entry.name in found:
            raise SchemaError(f"{entry.name} is declared twice.")
        found[entry.name] = entry
    return found


def _nodes(raw: object) -> Iterator[tuple[str, Node]]:
    yield from cast("Mapping[str, Node]", raw).items()


def _list(raw: object) -> list[Node]:
    return cast("list[Node]", raw)
