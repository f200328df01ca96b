"""values.yaml is documented, its schema refuses typos, and every value reaches a manifest."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest
import yaml

from deploy.tools.chart_docs import CHART as DOCUMENTED_CHART
from deploy.tools.chart_docs import make_files
from tests.chart.manifests import CASES, CHART, Helm, RenderError
from tests.chart.markers import BUILT_IN, COLLECTOR, SETS, SPECIAL

VALUES: Final[Mapping[str, Any]] = yaml.safe_load((CHART / "values.yaml").read_text())
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


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value and key != "resources":
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _marker(ordinal: int, path: str, default: object) -> object:
    """A value of the default's type that appears nowhere else in the manifests."""
    text = f"marker{ordinal}"
    if path.startswith("networkPolicy."):
        return [{"podSelector": {"matchLabels": {text: "true"}}}]
    if path.endswith(".resources"):
        return {"requests": {"cpu": text, "memory": text}, "limits": {"memory": text}}
    if isinstance(default, list):
        return [{"key": text, "operator": "Exists"}]
    if isinstance(default, dict):
        return {text: "true"}
    if isinstance(default, str):
        return text
    return (20_000_000 if path.endswith("Bytes") else 20_000) + ordinal


def _marks(value: object) -> str:
    """What must be found in the manifests for a value to have reached them."""
    if isinstance(value, list) and isinstance(value[0], int | str):
        return str(value[0])
    if isinstance(value, list) and "podSelector" in value[0]:
        return str(next(iter(value[0]["podSelector"]["matchLabels"])))
    if isinstance(value, list):
        return str(list(value[0].values())[-1 if "ttftS" in value[0] else 0])
    if isinstance(value, dict):
        first = next(iter(value.items()))
        return str(first[1]["cpu"] if first[0] == "requests" else first[0])
    return json.dumps(str(value).lower()) if isinstance(value, bool) else str(value)


def test_every_value_reaches_a_manifest(helm: Helm) -> None:
    markers = {
        path: _marker(100 + ordinal, path, default)
        for ordinal, (path, default) in enumerate(_leaves(VALUES))
        if path not in SPECIAL
    }
    pools = [{"name": "llm", "modelName": "m", "model": "m", "ffn": "remote"}]
    collector = {path: markers.pop(path) for path in tuple(markers) if "collector." in path}
    built_in = {**markers, **BUILT_IN, "pools": pools}
    sets = (built_in, {**collector, **COLLECTOR}, *SETS[1:])
    for values in sets:
        text = json.dumps(helm.render(values=values))
        unread = [path for path, value in values.items() if _marks(value) not in text]
        assert not {*unread} - {"pools", "tls.mode"}, "no template reads these"
