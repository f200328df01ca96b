"""Weights that the chart's Job fetches: a store in the cluster, and values that name it."""

from typing import Final

import yaml

from deploy.cluster.layout import ROOT
from tests.cluster.kube import SECURE, Kube, pod, service
from tests.cluster.release import LAPTOP, Values
from understudy.weights.contents import sums_of

FETCHED: Final = "slm"
MODEL: Final = "models/slm-snips"
"""Of the image: what stands for a bucket's content here."""
PORT: Final = 8080
STORE: Final = "store"


def weights_store(kube: Kube) -> None:
    """Start a pod that serves the files of the image as a bucket that everybody may read."""
    container = {
        "name": "main",
        "image": "understudy",
        "command": ["python", "-m", "http.server", str(PORT), "--directory", "/app"],
        "ports": [{"name": "main", "containerPort": PORT}],
        "securityContext": SECURE,
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
    }
    kube.apply(pod(STORE, container), service(STORE, PORT))
    kube.wait(f"pod/{STORE}", "condition=Ready")


def fetched_values() -> Values:
    """Return values of the laptop's preset whose SLM comes from the store."""
    pools = yaml.safe_load(LAPTOP.read_text())["pools"]
    path = f"weights:{FETCHED}"
    mine = [
        {**pool, "model": path, "versionDir": path} if pool["name"] == FETCHED else pool
        for pool in pools
    ]
    model = {
        "name": FETCHED,
        "source": f"s3://{MODEL}/",
        "endpoint": f"http://{STORE}:{PORT}",
        "sums": sums_of(ROOT / MODEL).text,
        "maxGib": 1,
    }
    return {"pools": mine, "weights": {"models": [model], "volume": {"size": "1Gi"}}}
