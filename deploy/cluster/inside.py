"""The first process of a cluster: `python -m deploy.cluster.inside STATE COMMAND...`.

It lays the network, starts control plane and agent, runs the command, and ends. The kernel then
ends every other process of the namespace, so nothing is left, however this process ended.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from deploy.cluster import namespaces
from deploy.cluster.agent.images import SOURCES
from deploy.cluster.agent.nodes import read_nodes
from deploy.cluster.agent.sandbox import resolver
from deploy.cluster.controlplane import ControlPlane, StartError, make_certificates
from deploy.cluster.layout import (
    BRIDGE,
    GATEWAY,
    MANIFESTS,
    NODES,
    PREFIX_LENGTH,
    PYTHON,
    ROOT,
    SERVICE_NETWORK,
    Layout,
    node_address,
)

POLL_S: Final = 0.2
AGENT_TIMEOUT_S: Final = 60


def say(line: str) -> None:
    """Tell the caller how far it is."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def lay_network(num_nodes: int) -> None:
    """Make the bridge that pods are plugged into; Service addresses are local to it."""
    nodes = [f"address add {node_address(i)}/32 dev {BRIDGE}" for i in range(num_nodes)]
    commands = [
        "link set lo up",
        f"link add {BRIDGE} type bridge",
        f"address add {GATEWAY}/{PREFIX_LENGTH} dev {BRIDGE}",
        *nodes,
        f"link set {BRIDGE} up",
        f"route add local {SERVICE_NETWORK} dev lo",
    ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands).encode(), check=True)


def use_cluster_names(layout: Layout) -> None:
    """Have the cluster resolve names in here too; the machine's servers are out of reach."""
    own, file = layout.state / "resolv.conf", Path("/etc/resolv.conf")
    own.write_text(resolver("default"))
    if file.exists():
        namespaces.make_private(Path("/"))
        namespaces.bind(own, file.resolve(), is_read_only=True)


def compile_sources() -> "subprocess.Popen[bytes]":
    """Begin to compile what images carry to bytecode, as the Dockerfile does for them.

    A checkout that cannot be written to costs each process a second or two at its start, no more.
    """
    folders = [str(ROOT / name) for name in (*SOURCES, "deploy")]
    command = [PYTHON, "-m", "compileall", "-q", *folders]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def environment(layout: Layout, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of everything inside: no proxies, since nothing outside is reached."""
    kept = {name: value for name, value in environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, "KUBECONFIG": str(layout.kubeconfig), "CLUSTER_STATE": str(layout.state)}


class Cluster:
    """Control plane and agent, started and watched."""

    def __init__(self, layout: Layout, environ: Mapping[str, str]) -> None:
        self._layout, self._environ = layout, dict(environ)
        self._plane = ControlPlane(layout, environ)
        self._agent: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start everything; return once the nodes are ready for pods."""
        started_s = time.monotonic()
        names = [node.name for node in read_nodes(NODES)]
        for folder in (self._layout.logs, self._layout.pods, self._layout.claims):
            folder.mkdir()
        lay_network(len(names))
        use_cluster_names(self._layout)
        make_certificates(self._layout, len(names))
        compiling = compile_sources()
        self._plane.start()
        compiling.wait()
        say(f"control plane ready after {time.monotonic() - started_s:.1f} s")
        self._kubectl("apply", "--filename", str(MANIFESTS))
        with (self._layout.logs / "agent.log").open("wb") as log:
            self._agent = subprocess.Popen(
                [PYTHON, "-m", "deploy.cluster.agent", str(self._layout.state)],
                cwd=ROOT,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait_for_nodes(names)
        say(f"nodes ready after {time.monotonic() - started_s:.1f} s")
        self._layout.ready.write_text(json.dumps({"kubeconfig": str(self._layout.kubeconfig)}))

    def check(self) -> None:
        """Raise if something that must run has ended."""
        self._plane.check()
        if self._agent is not None and self._agent.poll() is not None:
            lines = (self._layout.logs / "agent.log").read_text(errors="replace").splitlines()
            raise StartError("\n".join(["the node agent ended:", *lines[-15:]]))

    def stop(self) -> None:
        """End the agent, and pods with it; the rest ends with this process."""
        if self._agent is not None:
            self._agent.terminate()
            self._agent.wait()

    def _wait_for_nodes(self, names: Sequence[str]) -> None:
        deadline_s = time.monotonic() + AGENT_TIMEOUT_S
        wanted = [f"node/{name}" for name in names]
        while not self._is_met("wait", "--for=condition=Ready", "--timeout=1s", *wanted):
            self.check()
            if time.monotonic() > deadline_s:
                raise StartError(f"the nodes are not ready after {AGENT_TIMEOUT_S} s")

    def _kubectl(self, *arguments: str) -> None:
        subprocess.run(
            ["kubectl", *arguments], env=self._environ, stdout=subprocess.DEVNULL, check=True
        )

    def _is_met(self, *arguments: str) -> bool:
        result = subprocess.run(
            ["kubectl", *arguments], env=self._environ, capture_output=True, check=False
        )
        return result.returncode == 0


def run_command(cluster: Cluster, command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command while the cluster works; return its status."""
    with subprocess.Popen(command, env=dict(environ)) as process:
        try:
            while process.poll() is None:
                cluster.check()
                time.sleep(POLL_S)
        finally:
            process.kill()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def keep(cluster: Cluster) -> NoReturn:
    """Keep the cluster until this process is told to end."""
    while True:
        cluster.check()
        time.sleep(POLL_S)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main(state: Path, command: Sequence[str]) -> int:
    """Start the cluster, run the command or wait, and end the cluster."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    layout = Layout(state)
    environ = environment(layout, os.environ)
    cluster = Cluster(layout, environ)
    try:
        cluster.start()
        return run_command(cluster, command, environ) if command else keep(cluster)
    except StartError as error:
        say(f"cluster: {error}")
        return 1
    finally:
        layout.ready.unlink(missing_ok=True)
        cluster.stop()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
