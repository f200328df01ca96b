"""`python -m understudy.local.triton`: packages the LLM's feed-forwards and serves them."""

import asyncio
import os
import signal
from collections.abc import Mapping
from functools import partial

from understudy.errors import FailedPrecondition
from understudy.local.triton.installation import require_triton
from understudy.local.triton.packages import ensure_ffn_package
from understudy.local.triton.server import POLL_S, TritonServer, remove_leftovers
from understudy.local.triton.settings import TritonSettings
from understudy.serving import ServingSettings, run_service
from understudy.serving.ready_file import write_ready_file


async def main(environ: Mapping[str, str], _serving: ServingSettings) -> None:
    """Serve until SIGTERM; a server that dies ends this process too, to be started again."""
    settings = TritonSettings.from_env(environ)
    installation = require_triton(os.environ)
    remove_leftovers()
    repository = settings.directory.resolve() / "repository"
    make = partial(ensure_ffn_package, settings.model, repository, settings.compute)
    name = await asyncio.to_thread(make)
    server = TritonServer(
        installation,
        repository,
        settings.directory / "server.log",
        models=[name],
        grpc_port=settings.grpc_port,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await asyncio.to_thread(server.wait_ready)
        if settings.ready_file is not None:
            write_ready_file(settings.ready_file, server.grpc_port, server.metrics_port)
        while not stop.is_set():
            if not server.is_running:
                raise FailedPrecondition(f"Triton ended; see {settings.directory / 'server.log'}.")
            await asyncio.sleep(POLL_S)
    finally:
        server.stop()


if __name__ == "__main__":
    run_service("triton", main)
