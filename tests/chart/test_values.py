"""values.yaml is documented, and its schema refuses typos."""

from typing import Any, Final

import pytest

from deploy.tools.chart_docs import CHART as DOCUMENTED_CHART
from deploy.tools.chart_docs import make_files
from tests.chart.manifests import CASES, CHART, Helm, RenderError

TYPOS: Final = (
    "rooter",
    "serving.drainGrace",
    "router.settings.requestTimeout",
    "attention.setings",
    "attention.settings.tokenBudgets",
    "experts.settings.credit",
    "kvstore.settings.bytes",
    "redis.kv.url",
    "redis.password",
    "redis.control.persistance",
    "distiller.persistence.sise",
    "scaling.enable",
    "scaling.settings.interval",
    "networkPolicy.enable",
    "telemetry.podMonitors.intervall",
    "telemetry.collector.endpoint",
    "experts.gpu",
    "experts.settings.tritonSharedMemory",
    "experts.triton.image",
    "router.priorityClass",
    "networkPolicy.caller",
    "router.tls.secret",
    "router.gateway.parentRefs",
    "router.gateway.grpc.parents",
    "telemetry.jaeger.enable",
    "telemetry.prometheus.retain",
    "weights.volume.sise",
    "weights.model",
)
LLM: Final = {"name": "llm", "modelName": "m", "model": "smollm2", "ffn": "fused"}
WRONG: Final[tuple[tuple[str, object], ...]] = (
    ("router.replicas", "two"),
    ("router.replicas", 0),
    ("serving.logLevel", "loud"),
    ("serving.traceSampleRatio", 2),
    ("image.digests.worker", "sha256:short"),
    ("redis.kv.maxMemory", "much"),
    ("pools", []),
    ("pools", [{"name": "llm", "model": "smollm2", "ffn": "fused"}]),
    ("pools", [{"name": "slm", "modelName": "m", "model": "smollm2", "ffn": "fused"}]),
    ("pools", [LLM, {**LLM, "name": "auto"}]),
    ("pools", [{"name": "LLM", "modelName": "m", "model": "smollm2", "ffn": "fused"}]),
    ("pools", [{"name": "llm", "modelName": "m", "model": "smollm2", "ffn": "both"}]),
    ("pools", [{"name": "llm", "modelName": "m", "model": "m", "ffn": "fused", "atention": {}}]),
    ("weights.models", [{"name": "m", "source": "s3://b/k/", "maxGib": 1}]),
    ("weights.models", [{"name": "m", "source": "ftp://b/k/", "maxGib": 1, "sums": "x"}]),
    ("weights.models", [{"name": "../m", "source": "s3://b/k/", "maxGib": 1, "sums": "x"}]),
    ("weights.volume.accessModes", ["ReadOnlyMany"]),
    ("scaling.pools", []),
    ("scaling.pools", [{"name": "llm", "attention": {"minReplica": 1}}]),
    ("scaling.pools", [{"name": "llm", "attention": {"minReplicas": 0}}]),
    ("scaling.pools", [{"name": "llm", "utilisation": 2}]),
    ("scaling.maxGpus", -1),
    ("telemetry.collector.exportEndpoint", "http://tempo:4317"),
    ("telemetry.podMonitors.interval", "often"),
)


def test_the_readme_and_the_schema_are_up_to_date() -> None:
    assert DOCUMENTED_CHART == CHART
    for path, text in make_files(CHART).items():
        assert path.read_text() == text, f"{path.name} is stale: run deploy/tools/chart_docs.py"


@pytest.mark.parametrize("preset", [None, *CASES], ids=lambda preset: preset and preset.stem)
def test_helm_lint_has_no_complaint(helm: Helm, preset: Any) -> None:
    flags = ["--values", str(preset)] if preset else []
    assert "0 chart(s) failed" in helm.run("lint", str(CHART), "--strict", *flags)


@pytest.mark.parametrize("path", TYPOS)
def test_a_typo_is_refused_by_name(helm: Helm, path: str) -> None:
    with pytest.raises(RenderError, match=path.rpartition(".")[2]):
        helm.render(values={path: 1})


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_a_value_out_of_range_is_refused(helm: Helm, path: str, value: object) -> None:
    with pytest.raises(RenderError, match=path.partition(".")[0]):
        helm.render(values={path: value})
