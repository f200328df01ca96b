"""The schema itself: complete, free of contradictions, in the words of the code."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

from deploy.telemetry.schema import SCHEMA, Schema, SchemaError, load_schema
from services.attention.sequence import FinishReason, Priority
from services.controller.scaling.signals import Part
from services.controller.scaling.steadying import Cause
from services.distiller.metrics import STATES
from services.router.answers import FinishReason as AnswerFinish
from services.router.answers import Reason
from understudy.chunks import Mismatch
from understudy.errors import REASONS
from understudy.exchange.frame import FrameStatus
from understudy.telemetry import names


def test_value_sets_are_those_of_the_code(schema: Schema) -> None:
    ends = {reason.lower() for reason in REASONS} | {one.value for one in FinishReason}
    expected = {
        "reason": set(get_args(Reason)),
        "finish": set(get_args(AnswerFinish)),
        "error": set(REASONS),
        "end": ends,
        "mismatch": {str(one) for one in Mismatch},
        "frame_status": {one.name.lower() for one in FrameStatus},
        "priority": {one.name.lower() for one in Priority},
        "run_state": set(STATES),
        "part": {part.value for part in Part},
        "hold": {cause.value for cause in Cause},
    }
    assert {name: set(schema.value_sets[name].values) for name in expected} == expected


def test_what_is_named_like_a_convention_is_one(schema: Schema) -> None:
    attributes = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    metrics = {value for value in vars(gen_ai_metrics).values() if isinstance(value, str)}
    named = {name for name in schema.attributes if name.startswith("gen_ai.")}
    assert named <= attributes
    for metric in schema.metrics.values():
        assert metric.name.startswith("gen_ai_") == bool(metric.convention)
        if metric.convention:
            assert metric.convention in metrics
            assert metric.name == f"{metric.convention.replace('.', '_')}_seconds"
            labels = {name for name in metric.labels if name.startswith("gen_ai_")}
            assert labels <= {name.replace(".", "_") for name in attributes}


def test_own_names_begin_with_understudy(schema: Schema) -> None:
    conventions = ("gen_ai.", "rpc.", "error.", "server.", "http.")
    for name in schema.attributes:
        assert name.startswith(("understudy.", *conventions)), name
    for name in schema.metrics:
        assert name.startswith(("understudy_", "gen_ai_")), name


def test_every_declared_attribute_has_a_span_and_every_name_of_the_code_is_declared(
    schema: Schema,
) -> None:
    used = set().union(*(span.attributes for span in schema.spans.values()))
    assert used == schema.attributes.keys()
    constants = {value for key, value in vars(names).items() if key.isupper()}
    of_callers = {names.STREAM_MESSAGES, names.STREAM_FIRST_MESSAGE_S, names.STREAM_OUTCOME}
    assert constants - of_callers <= schema.attributes.keys() | schema.spans.keys()


def test_units_are_in_the_names_of_metrics_that_measure(schema: Schema) -> None:
    for metric in schema.metrics.values():
        for unit in ("seconds", "bytes"):
            assert metric.name.endswith(f"_{unit}") == (metric.unit == unit), metric.name


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda raw: raw["metrics"].append(raw["metrics"][0]), "declared twice"),
        (lambda raw: raw["metrics"][0].update(type="summary"), "unknown type summary"),
        (lambda raw: raw["metrics"][0].update(labels={"x": "nobody"}), "nobody"),
        (lambda raw: raw["attributes"]["error.type"].update(type="text"), "unknown type text"),
        (lambda raw: raw["spans"][0]["required"].append("understudy.x"), "understudy.x"),
        (lambda raw: raw["spans"][1].update(parents=["nobody"]), "nobody"),
        (lambda raw: raw["value_sets"].update(x={"meaning": "None."}), "either values"),
        (lambda raw: raw["edges"].pop(0), "disagree about"),
        (lambda raw: raw.pop("spans"), "spans"),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused_by_name(
    tmp_path: Path, change: object, sentence: str
) -> None:
    raw = yaml.safe_load(SCHEMA.read_text())
    change(raw)  # type: ignore[operator]
    broken = tmp_path / "schema.yaml"
    broken.write_text(yaml.safe_dump(raw))
    with pytest.raises(SchemaError, match=sentence):
        load_schema(broken)
