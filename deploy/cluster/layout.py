"""Addresses of the cluster's network and the folders of one running cluster."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PROGRAMS: Final = Path(__file__).resolve().parent / "programs"
NODES: Final = Path(__file__).resolve().parent / "nodes.yaml"
MANIFESTS: Final = Path(__file__).resolve().parent / "manifests.yaml"
BRIDGE: Final = "cluster0"
GATEWAY: Final = "10.244.0.1"
POD_NETWORK: Final = "10.244.0.0/16"
PREFIX_LENGTH: Final = 16
SERVICE_NETWORK: Final = "10.96.0.0/16"
API_SERVICE: Final = "10.96.0.1"
DNS_SERVICE: Final = "10.96.0.10"
DOMAIN: Final = "cluster.local"
API_PORT: Final = 6443
KUBELET_PORT: Final = 10250

PYTHON: Final = sys.executable


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one cluster keeps its things; everything in it is private to the user."""

    state: Path

    @property
    def certificates(self) -> Path:
        """Keys and certificates."""
        return self.state / "pki"

    @property
    def logs(self) -> Path:
        """Logs of the control plane and the agent."""
        return self.state / "logs"

    @property
    def pods(self) -> Path:
        """Logs, roots and volumes of pods."""
        return self.state / "pods"

    @property
    def claims(self) -> Path:
        """Folders behind persistent volumes."""
        return self.state / "claims"

    @property
    def kubeconfig(self) -> Path:
        """Access for an administrator."""
        return self.state / "kubeconfig"

    @property
    def ready(self) -> Path:
        """Exists once the cluster is ready; holds the process that keeps it."""
        return self.state / "ready.json"


def node_address(index: int) -> str:
    """Return the address of a node."""
    return f"10.244.0.{10 + index}"


def pod_address(index: int, number: int) -> str:
    """Return the n-th pod address of a node, counted from 0."""
    return f"10.244.{index + 1}.{number + 2}"
