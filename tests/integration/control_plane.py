"""A real Kubernetes control plane on loopback: etcd, API server, controller manager, scheduler.

The binaries are those that the cluster tests build, or any on PATH. One node exists on paper; pods
bound to it get their status from the test, and are answered for by servers of the test on loopback
addresses, so that nothing leaves the machine.
"""

import json
import os
import shutil
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.integration.processes import wait_until
from understudy.local.processes import Child, child_environment, last_lines

BINARIES: Final = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
TOKEN: Final = "admin-of-this-test"
NODE: Final = "paper"
COST: Final = "controller.kubernetes.io/pod-deletion-cost"


def find_binaries() -> dict[str, str] | None:
    """Return the paths of all binaries, None when one is missing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folders = [str(found) for found in sorted((cache / "understudy" / "cluster").glob("*-v*"))]
    path = os.pathsep.join([*folders, os.environ.get("PATH", "")])
    found = {name: shutil.which(name, path=path) for name in BINARIES}
    return {name: at for name, at in found.items() if at} if all(found.values()) else None


@dataclass
class ControlPlane:
    """The running processes, and the API as their administrator."""

    folder: Path
    binaries: dict[str, str]
    ports: tuple[int, int, int]
    """API server, and etcd's two."""
    children: list[Child] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.ports[0]}"

    @property
    def authority(self) -> Path:
        """The certificate that the API server made for itself."""
        return self.folder / "pki" / "apiserver.crt"

    def start(self) -> None:
        """Start everything and wait until accounts are made, which needs all of it."""
        self._make_keys()
        etcd, peer = (f"http://127.0.0.1:{port}" for port in self.ports[1:])
        self._run("etcd", "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync",
                  "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
                  "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                  "--initial-cluster", f"default={peer}", "--log-level", "warn")  # fmt: skip
        self._run("kube-apiserver", *self._api_flags(etcd))
        self._wait("kube-apiserver", "/readyz")
        for name in ("kube-controller-manager", "kube-scheduler"):
            self._run(name, f"--kubeconfig={self.folder / 'kubeconfig'}", "--leader-elect=false",
                      "--secure-port=0", *self._extra_flags(name))  # fmt: skip
        self._wait("kube-controller-manager", "/api/v1/namespaces/default/serviceaccounts/default")

    def stop(self) -> None:
        """End everything."""
        for child in reversed(self.children):
            child.terminate()
        for child in reversed(self.children):
            child.kill()

    def call(self, method: str, path: str, body: object = None, kind: str = "application/json"):
        """Ask the API as administrator; raises urllib's HTTPError for a refusal."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": kind},
        )
        context = ssl.create_default_context(cafile=str(self.authority))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=30) as response:
            text = response.read()
        return json.loads(text) if text.startswith(b"{") else text.decode()

    def _make_keys(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pki = self.folder / "pki"
        pki.mkdir(mode=0o700)
        (pki / "accounts.key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        )
        (pki / "accounts.pub").write_bytes(
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        (self.folder / "tokens").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
        cluster = {"server": self.url, "certificate-authority": str(self.authority)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "it", "user": {"token": TOKEN}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        }
        (self.folder / "kubeconfig").write_text(json.dumps(config))

    def _api_flags(self, etcd: str) -> list[str]:
        pki = self.folder / "pki"
        return [
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.ports[0]}",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--cert-dir={pki}",
            f"--token-auth-file={self.folder / 'tokens'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={pki / 'accounts.key'}",
            f"--service-account-key-file={pki / 'accounts.pub'}",
            "--profiling=false",
        ]

    def _extra_flags(self, name: str) -> list[str]:
        if name != "kube-controller-manager":
            return []
        wanted = ("deployment", "replicaset", "serviceaccount")
        controllers = ",".join(f"{one}-controller" for one in wanted)
        return [f"--controllers={controllers}"]

    def _run(self, name: str, *flags: str) -> None:
        log = self.folder / f"{name}.log"
        environ = child_environment(os.environ)
        self.children.append(Child((self.binaries[name], *flags), environ, log))

    def _wait(self, name: str, path: str) -> None:
        def answers() -> bool:
            ended = [child for child in self.children if child.exit_code() is not None]
            assert not ended, "\n".join(last_lines(self.folder / f"{name}.log", 20))
            try:
                self.call("GET", path)
            except (urllib.error.URLError, OSError):
                return False
            return True

        wait_until(answers, f"{name} to serve {path}")
