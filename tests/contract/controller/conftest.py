"""An API server at the level of HTTP, and pods that can be read."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import grpc
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from tests.contract.controller.api_server import ApiServer, pod
from tests.contract.controller.worker_pod import WorkerPod
from understudy.api.attention.v1 import attention_pb2_grpc


async def listen(app: web.Application, stack: AsyncExitStack) -> int:
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner.addresses[0][1]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def api(stack) -> ApiServer:
    server = ApiServer()
    port = await listen(server.app(), stack)
    server.configuration = Configuration(host=f"http://127.0.0.1:{port}")
    return server


@pytest.fixture
def add_worker(api, stack):
    async def add(name: str) -> WorkerPod:
        worker = WorkerPod()
        app = web.Application()
        app.router.add_get("/metrics", worker.expose)
        metrics_port = await listen(app, stack)
        server = grpc.aio.server()
        attention_pb2_grpc.add_AttentionServiceServicer_to_server(worker, server)
        grpc_port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        api.pods[name] = pod(name, "127.0.0.1", metrics_port, grpc_port)
        return worker

    return add
