"""`python -m deploy.cluster.agent STATE`: work for the cluster whose folder is given."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from deploy.cluster.agent.agent import Agent
from deploy.cluster.agent.api import connect
from deploy.cluster.agent.images import standard_images
from deploy.cluster.agent.nodes import read_nodes
from deploy.cluster.layout import NODES, Layout


async def main(state: Path) -> None:
    """Run the agent until it is told to end; pods end with it."""
    layout = Layout(state)
    async with connect(layout.certificates / "agent.kubeconfig") as api:
        images = standard_images(os.environ)
        work = asyncio.ensure_future(Agent(api, layout, read_nodes(NODES), images).run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, work.cancel)
        await asyncio.wait((work,))
        if not work.cancelled():
            work.result()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
