"""Every value of values.yaml reaches a manifest: a marker in its place is found again."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from tests.chart.manifests import CHART, Helm

VALUES: Final[Mapping[str, Any]] = yaml.safe_load((CHART / "values.yaml").read_text())
BUILT_IN: Final[Mapping[str, object]] = {
    "fullnameOverride": "marker1",
    "image.repository": "marker2",
    "image.tag": "marker3",
    "image.pullPolicy": "Never",
    "imagePullSecrets": [{"name": "marker4"}],
    "attention.replicas": 7,
    "attention.settings.compute": "reference",
    "attention.settings.device": "cpu",
    "attention.settings.weightsDtype": "bfloat16",
    "attention.settings.kvDtype": "int8",
    "experts.replicas": 8,
    "experts.settings.compute": "fast",
    "experts.settings.device": "cuda",
    "experts.settings.weightsDtype": "float16",
    "experts.settings.credits": 233,
    "experts.settings.executor": "triton",
    "experts.settings.tritonFallback": "replica",
    "experts.settings.tritonTimeoutS": 33.5,
    "router.replicas": 9,
    "controller.settings.probeIntervalS": 31.5,
    "controller.settings.probeTimeoutS": 32.5,
    "serving.drainGraceS": 599,
    "serving.preStopS": 59,
    "serving.otlpEndpoint": "marker5",
    "serving.traceSampleRatio": 0.123,
    "serving.maxCallS": 10006,
    "serving.maxConcurrentCalls": 10007,
    "serving.logLevel": "debug",
    "attention.settings.batchShare": 0.321,
    "weights.existingClaim": "marker8",
    "weights.mountPath": "/marker9",
    "router.service.type": "NodePort",
    "router.service.annotations": {"marker26": "yes"},
    "redis.image.repository": "marker10",
    "redis.image.tag": "marker11",
    "redis.kv.maxMemory": "12mb",
    "redis.control.maxMemory": "13mb",
    "attention.gpus": 61,
    "attention.resourceClaims": [{"name": "marker20"}],
    "experts.gpus": 62,
    "gpuResource": "marker21/gpu",
    "topologySpread": [
        {"topologyKey": "marker22", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}
    ],
    "telemetry.podMonitors.enabled": True,
    "telemetry.podMonitors.interval": "2467s",
    "telemetry.rules.enabled": True,
    "telemetry.dashboards.enabled": True,
    "networkPolicy.enabled": True,
    "networkPolicy.apiServerPorts": [2468],
    "scaling.enabled": True,
    "scaling.dryRun": True,
    "scaling.settings.intervalS": 351.5,
    "scaling.settings.readTimeoutS": 34.5,
    "scaling.settings.unschedulableAfterS": 3521,
    "scaling.pools": [{"name": "llm", "ttftS": 24680}],
}
COLLECTOR: Final[Mapping[str, object]] = {
    "telemetry.collector.enabled": True,
    "telemetry.collector.exportEndpoint": "marker25:4317",
}
EXTERNAL: Final[Mapping[str, object]] = {
    **COLLECTOR,
    "telemetry.collector.image.digest": f"sha256:{'3' * 64}",
    "image.digests.router": f"sha256:{'1' * 64}",
    "image.digests.worker": f"sha256:{'4' * 64}",
    "image.digests.distiller": f"sha256:{'5' * 64}",
    "redis.image.digest": f"sha256:{'2' * 64}",
    "router.keysSecret": "marker14",
    "distiller.persistence.existingClaim": "marker15",
    "redis.kv.externalSecret": "marker16",
    "redis.usersSecret": "marker24",
}
URLS: Final[Mapping[str, object]] = {
    "redis.kv.externalUrl": "redis://marker17",
    "redis.control.externalUrl": "redis://marker18",
}
CONTROL_SECRET: Final[Mapping[str, object]] = {
    "redis.control.externalSecret": "marker19",
    "networkPolicy.externalRedisPort": 2469,
    "experts.resourceClaims": [{"name": "marker23"}],
}
CERTIFICATES: Final[Mapping[str, object]] = {
    "tls.mode": "certManager",
    "tls.domain": "marker27",
    "tls.certManager.issuerRef.name": "marker28",
    "tls.certManager.issuerRef.kind": "marker29",
    "tls.certManager.issuerRef.group": "marker30",
    "tls.certManager.duration": "2471h",
    "tls.certManager.renewBefore": "977h",
}
FETCHED: Final[Mapping[str, object]] = {
    "weights.models": [
        {
            "credentialsSecret": "marker31",
            "name": "m",
            "source": "s3://marker32/m/",
            "digest": f"sha256:{'6' * 64}",
            "maxGib": 1,
            "endpoint": "https://marker33",
            "region": "marker34",
        }
    ],
    "weights.volume.size": "marker35",
    "weights.volume.storageClass": "marker36",
    "weights.volume.accessModes": ["ReadWriteOncePod"],
    "weights.job.deadlineS": 2473,
    "weights.job.resources": {"requests": {"cpu": "marker37"}},
    "weights.job.nodeSelector": {"marker38": "true"},
    "weights.job.tolerations": [{"key": "marker39"}],
    "weights.job.priorityClassName": "marker40",
    "networkPolicy.sources": [{"podSelector": {"matchLabels": {"marker41": "true"}}}],
}
TRITON: Final[Mapping[str, object]] = {
    "image.digests.triton": f"sha256:{'7' * 64}",
    "experts.settings.executor": "triton",
    "experts.triton.sharedMemoryMib": 2477,
    "experts.triton.threads": 251,
    "experts.triton.resources": {"requests": {"cpu": "marker42"}},
    "experts.triton.volume.size": "marker43",
    "experts.triton.volume.storageClass": "marker44",
    "experts.triton.volume.accessModes": ["ReadWriteOncePod"],
    "experts.triton.job.deadlineS": 2503,
    "experts.triton.job.resources": {"requests": {"cpu": "marker45"}},
}
EDGE: Final[Mapping[str, object]] = {
    "router.tls.secretName": "marker46",
    "router.gateway.gkeHealthCheck": True,
    "router.gateway.http.parentRefs": [{"name": "marker47"}],
    "router.gateway.http.hostnames": ["marker48"],
    "router.gateway.grpc.parentRefs": [{"name": "marker61"}],
    "router.gateway.grpc.hostnames": ["marker62"],
    "telemetry.jaeger.enabled": True,
    "telemetry.jaeger.image.repository": "marker49",
    "telemetry.jaeger.image.tag": "marker50",
    "telemetry.jaeger.resources": {"requests": {"cpu": "marker51"}},
    "telemetry.jaeger.nodeSelector": {"marker52": "true"},
    "telemetry.jaeger.tolerations": [{"key": "marker53"}],
    "telemetry.jaeger.priorityClassName": "marker54",
    "telemetry.prometheus.enabled": True,
    "telemetry.prometheus.image.repository": "marker55",
    "telemetry.prometheus.image.tag": "marker56",
    "telemetry.prometheus.retention": "2521h",
    "telemetry.prometheus.retentionMib": 2531,
    "telemetry.prometheus.resources": {"requests": {"cpu": "marker57"}},
    "telemetry.prometheus.nodeSelector": {"marker58": "true"},
    "telemetry.prometheus.tolerations": [{"key": "marker59"}],
    "telemetry.prometheus.priorityClassName": "marker60",
}
AUTOSCALED: Final[Mapping[str, object]] = {
    "router.preStopS": 653,
    "router.autoscaling.enabled": True,
    "router.autoscaling.minReplicas": 641,
    "router.autoscaling.maxReplicas": 643,
    "router.autoscaling.cpuPercent": 647,
    "router.autoscaling.downWindowS": 2549,
    "scaling.enabled": True,
    "scaling.by": "keda",
    "scaling.keda.serverAddress": "http://marker63",
    "scaling.keda.authentication": "marker64",
}
DIGESTS: Final[Mapping[str, object]] = {
    "telemetry.jaeger.enabled": True,
    "telemetry.jaeger.image.digest": f"sha256:{'8' * 64}",
    "telemetry.prometheus.enabled": True,
    "telemetry.prometheus.image.digest": f"sha256:{'9' * 64}",
}
INSIDE_CERTIFICATES: Final = ("tls.chart.authorityDays", "tls.chart.days", "tls.chart.replace")
"""What test_tls.py and test_api_server.py look for."""
SETS: Final = (
    BUILT_IN,
    EXTERNAL,
    URLS,
    CONTROL_SECRET,
    CERTIFICATES,
    FETCHED,
    TRITON,
    EDGE,
    AUTOSCALED,
    DIGESTS,
)
SPECIAL: Final = frozenset({*INSIDE_CERTIFICATES, *COLLECTOR, "pools"}.union(*SETS))


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
