"""Finds out whether this machine can run a cluster, by doing for a moment what a cluster does.

`python -m deploy.cluster.trial FOLDER` runs inside of the namespaces that a cluster would get: it
lays a bridge, plugs a pod's network into it and runs a program in a root of its own, as the node
agent does. What the kernel refuses is printed in one line, and the status is `REFUSED`.
"""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Final

from deploy.cluster.agent.images import system_image
from deploy.cluster.agent.launcher import ContainerOrder
from deploy.cluster.agent.launching import Exit, LaunchError, run_to_end
from deploy.cluster.agent.sandbox import make_network
from deploy.cluster.inside import lay_network
from deploy.cluster.layout import pod_address

REFUSED: Final = 3
TIMEOUT_S: Final = 30.0
_USER: Final = 10001


class Refused(Exception):
    """The machine does not allow what a cluster needs; the message says what."""


async def run_pod(folder: Path) -> Exit:
    """Run `true` as a pod would: another user, no rights, and nothing that is not shown to it."""
    network = await make_network("trial", pod_address(0, 0), "pod1", folder / "network.log")
    image, root = system_image(), folder / "root"
    root.mkdir()
    order: ContainerOrder = {
        "sandbox": network.launcher.pid,
        "root": str(root),
        "mounts": list(image.mounts),
        "links": dict(image.links),
        "is_root_read_only": True,
        "command": ["true"],
        "environment": dict(image.environment),
        "folder": "/",
        "user": _USER,
        "group": _USER,
        "keeps_capabilities": False,
        "may_gain_privileges": False,
    }
    try:
        return await run_to_end("container", {**order}, folder / "container.log", TIMEOUT_S)
    finally:
        network.kill()
        await network.launcher.wait()


def main(folder: Path) -> int:
    """Try it; print what is refused."""
    try:
        try:
            lay_network(1)
        except subprocess.CalledProcessError as error:
            raise Refused("no network can be laid") from error
        try:
            ended = asyncio.run(run_pod(folder))
        except LaunchError as error:
            raise Refused(f"no pod can be started: {error}") from error
        if ended.code:
            raise Refused(f"no program can be run in a pod: {ended.message or ended.code}")
    except Refused as error:
        sys.stdout.write(f"{error}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
