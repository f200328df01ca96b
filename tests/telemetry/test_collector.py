"""The collector's settings: of the documented form, and in step with what services emit.

The collector itself is not run here: its contrib distribution is no Go module that builds in
minutes. What is checked instead is the form that its components document, and the facts that the
sampling rests on.
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import jsonschema_rs
import pytest
import yaml

import deploy.telemetry
from deploy.telemetry.schema import Schema
from services.experts.spans import IDLE_S
from services.router.settings import RouterSettings

CONFIG: Final = Path(deploy.telemetry.__file__).with_name("collector.yaml")
DURATION: Final = {"type": "string", "pattern": r"^(\d+(\.\d+)?(ms|s|m|h))+$"}
COUNT: Final = {"type": "integer", "minimum": 1}
ENDPOINT: Final = {"type": "string", "pattern": r"^\$\{env:\w+\}(:\d+)?$"}


def of(required: list[str] | None = None, **properties: object) -> dict[str, object]:
    """Return the schema of a mapping that has these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def policy(kind: str, **settings: object) -> dict[str, object]:
    return of(name={"type": "string"}, type={"const": kind}, **{kind: of(**settings)})


POLICIES: Final = [
    policy(
        "status_code", status_codes={"type": "array", "items": {"enum": ["ERROR", "OK", "UNSET"]}}
    ),
    policy("boolean_attribute", key={"type": "string"}, value={"type": "boolean"}),
    policy("latency", threshold_ms=COUNT),
    policy("probabilistic", sampling_percentage={"type": "number", "minimum": 0, "maximum": 100}),
]
COMPONENTS: Final = {
    "receivers": of(otlp=of(protocols=of(grpc=of(endpoint=ENDPOINT)))),
    "processors": of(
        memory_limiter=of(
            check_interval=DURATION, limit_percentage=COUNT, spike_limit_percentage=COUNT
        ),
        tail_sampling=of(
            decision_wait=DURATION,
            decision_wait_after_root_received=DURATION,
            num_traces=COUNT,
            decision_cache=of(sampled_cache_size=COUNT, non_sampled_cache_size=COUNT),
            policies={"type": "array", "items": {"oneOf": POLICIES}},
        ),
        batch=of(send_batch_size=COUNT, send_batch_max_size=COUNT, timeout=DURATION),
    ),
    "exporters": of(
        otlp=of(
            endpoint=ENDPOINT,
            tls=of(insecure={"type": "boolean"}),
            sending_queue=of(enabled={"type": "boolean"}, queue_size=COUNT),
            retry_on_failure=of(enabled={"type": "boolean"}, max_elapsed_time=DURATION),
        )
    ),
    "extensions": of(health_check=of(endpoint=ENDPOINT)),
    "service": of(
        extensions={"type": "array"},
        pipelines=of(
            traces=of(
                receivers={"type": "array"},
                processors={"type": "array"},
                exporters={"type": "array"},
            )
        ),
        telemetry=of(logs={"type": "object"}, metrics={"type": "object"}),
    ),
}


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return loaded


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+)s", duration)
    assert match is not None
    return float(match[1])


def test_it_has_the_form_that_its_components_document(config: dict[str, Any]) -> None:
    jsonschema_rs.validator_for(of(**COMPONENTS)).validate(config)


def test_a_typing_error_would_be_found(config: dict[str, Any]) -> None:
    sampling = {**config["processors"]["tail_sampling"], "decision_time": "1s"}
    broken = {**config, "processors": {**config["processors"], "tail_sampling": sampling}}
    with pytest.raises(jsonschema_rs.ValidationError, match="decision_time"):
        jsonschema_rs.validator_for(of(**COMPONENTS)).validate(broken)


def test_the_pipeline_uses_every_component_and_guards_memory_first(config: dict[str, Any]) -> None:
    (pipeline,) = config["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        assert sorted(pipeline[kind]) == sorted(config[kind])
    assert pipeline["processors"] == ["memory_limiter", "tail_sampling", "batch"]
    assert config["service"]["extensions"] == list(config["extensions"])


def test_errors_escalations_and_slow_requests_are_kept(
    config: dict[str, Any], schema: Schema
) -> None:
    policies = {one["name"]: one for one in config["processors"]["tail_sampling"]["policies"]}
    assert set(policies) == {"errors", "escalations", "slow", "ordinary"}
    assert policies["errors"]["status_code"]["status_codes"] == ["ERROR"]
    escalated = policies["escalations"]["boolean_attribute"]
    assert escalated == {"key": "understudy.escalated", "value": True}
    assert escalated["key"] in schema.spans["router.generate"].attributes
    assert schema.attributes[escalated["key"]].type == "bool"
    assert policies["ordinary"]["probabilistic"]["sampling_percentage"] < 100


def test_a_trace_is_decided_after_its_last_span(config: dict[str, Any]) -> None:
    sampling = config["processors"]["tail_sampling"]
    after_root_s = seconds(sampling["decision_wait_after_root_received"])
    assert after_root_s > IDLE_S
    (timeout_s,) = (
        one.default for one in fields(RouterSettings) if one.name == "request_timeout_s"
    )
    assert seconds(sampling["decision_wait"]) > timeout_s + IDLE_S
    cache = sampling["decision_cache"]
    assert min(cache.values()) >= 10 * sampling["num_traces"], "late spans follow the decision"
