"""Starts etcd, API server, controller manager and scheduler, and waits until they work.

They listen inside the cluster's own network only. RBAC and PodSecurity admission are on; etcd does
not wait for the disk, since nothing outlives the cluster.
"""

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from deploy.cluster import certificates
from deploy.cluster.layout import (
    API_PORT,
    API_SERVICE,
    GATEWAY,
    SERVICE_NETWORK,
    Layout,
    node_address,
)

START_TIMEOUT_S: Final = 180
_POLL_S: Final = 0.1
_ETCD: Final = "http://127.0.0.1:2379"
_SERVER: Final = f"https://{GATEWAY}:{API_PORT}"
_CLIENTS: Final = {
    "admin": ("kubernetes-admin", "system:masters"),
    "agent": ("node-agent", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "kubelet-client": ("kube-apiserver-kubelet-client", "system:masters"),
}


class StartError(Exception):
    """A part of the control plane did not come up; the message ends with its log."""


def make_certificates(layout: Layout, num_nodes: int) -> None:
    """Make all keys and certificates of the cluster, and kubeconfigs for who needs one."""
    folder = layout.certificates
    folder.mkdir(mode=0o700)
    authority = certificates.make_authority(folder, "ca")
    front = certificates.make_authority(folder, "front-proxy-ca")
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    certificates.make_certificate(
        folder,
        "apiserver",
        authority,
        common_name="kube-apiserver",
        addresses=["127.0.0.1", GATEWAY, API_SERVICE],
        host_names=[*names, "kubernetes.default.svc.cluster.local"],
    )
    certificates.make_certificate(
        folder,
        "kubelet",
        authority,
        common_name="node-agent",
        addresses=[node_address(index) for index in range(num_nodes)],
    )
    certificates.make_certificate(folder, "front-proxy", front, common_name="front-proxy")
    for name, (common_name, group) in _CLIENTS.items():
        certificates.make_certificate(folder, name, authority, common_name=common_name, group=group)
        _write_kubeconfig(folder, name)
    certificates.make_signing_key(folder, "accounts")
    (folder / "admin.kubeconfig").replace(layout.kubeconfig)


def _write_kubeconfig(folder: Path, name: str) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "cluster",
        "clusters": [
            {
                "name": "cluster",
                "cluster": {"server": _SERVER, "certificate-authority": str(folder / "ca.crt")},
            }
        ],
        "users": [
            {
                "name": name,
                "user": {
                    "client-certificate": str(folder / f"{name}.crt"),
                    "client-key": str(folder / f"{name}.key"),
                },
            }
        ],
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": name}}],
    }
    path = folder / f"{name}.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=1))


class ControlPlane:
    """The four processes, started in order."""

    def __init__(self, layout: Layout, environ: Mapping[str, str]) -> None:
        self._layout = layout
        self._environ = dict(environ)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start everything; return once the controllers have acted for the first time."""
        self._start("etcd", _etcd_flags(self._layout))
        self._wait("etcd", lambda: _answers(f"{_ETCD}/readyz"))
        self._start("kube-apiserver", _api_flags(self._layout))
        self._wait("kube-apiserver", lambda: self._kubectl("get", "--raw", "/readyz"))
        self._start("kube-controller-manager", _controller_flags(self._layout))
        self._start("kube-scheduler", _scheduler_flags(self._layout))
        account = ("get", "serviceaccount", "default", "--namespace", "default")
        self._wait("kube-controller-manager", lambda: self._kubectl(*account))

    def check(self) -> None:
        """Raise if one of the processes has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise StartError(self._ended(name, process))

    def _start(self, name: str, flags: Sequence[str]) -> None:
        with (self._layout.logs / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [name, *flags],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not is_ready():
            self.check()
            if time.monotonic() > deadline_s:
                raise StartError(f"{name} is not ready after {START_TIMEOUT_S} s{self._tail(name)}")
            time.sleep(_POLL_S)

    def _kubectl(self, *arguments: str) -> bool:
        command = ["kubectl", "--kubeconfig", str(self._layout.kubeconfig), *arguments]
        result = subprocess.run(
            [*command, "--request-timeout", "5s"],
            env=self._environ,
            capture_output=True,
            check=False,
        )
        return result.returncode == 0

    def _ended(self, name: str, process: subprocess.Popen[bytes]) -> str:
        return f"{name} ended with status {process.returncode}{self._tail(name)}"

    def _tail(self, name: str) -> str:
        lines = (self._layout.logs / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join([":", *lines[-15:]])


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _etcd_flags(layout: Layout) -> list[str]:
    peer = "http://127.0.0.1:2380"
    return [
        "--name=cluster",
        f"--data-dir={layout.state / 'etcd'}",
        "--unsafe-no-fsync",
        "--log-level=warn",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=cluster={peer}",
    ]


def _api_flags(layout: Layout) -> list[str]:
    pki = layout.certificates
    return [
        f"--etcd-servers={_ETCD}",
        "--bind-address=0.0.0.0",
        f"--secure-port={API_PORT}",
        f"--advertise-address={GATEWAY}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-signing-key-file={pki / 'accounts.key'}",
        f"--service-account-key-file={pki / 'accounts.pub'}",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki / 'front-proxy.crt'}",
        f"--proxy-client-key-file={pki / 'front-proxy.key'}",
        "--allow-privileged=true",
        "--profiling=false",
    ]


def _client_flags(layout: Layout, name: str) -> list[str]:
    kubeconfig = layout.certificates / f"{name}.kubeconfig"
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--cert-dir={layout.state / f'{name}-serving'}",
        "--leader-elect=false",
        "--profiling=false",
    ]


def _controller_flags(layout: Layout) -> list[str]:
    # Its default rate makes a namespace wait seconds for its service account.
    return [
        *_client_flags(layout, "controller-manager"),
        "--use-service-account-credentials=true",
        f"--root-ca-file={layout.certificates / 'ca.crt'}",
        f"--service-account-private-key-file={layout.certificates / 'accounts.key'}",
        "--horizontal-pod-autoscaler-sync-period=2s",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--concurrent-serviceaccount-token-syncs=20",
    ]


def _scheduler_flags(layout: Layout) -> list[str]:
    return _client_flags(layout, "scheduler")
