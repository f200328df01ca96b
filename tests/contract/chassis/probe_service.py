"""A service process for the tests: the chassis with one slow call."""

import asyncio
import atexit
import os
import sys
from collections.abc import Mapping

import grpc.aio

from understudy.api.distiller.v1 import distiller_pb2, distiller_pb2_grpc
from understudy.serving import HealthState, ServingSettings, run_service, serve

SERVICE = "understudy.api.distiller.v1.DistillerService"


class Slow(distiller_pb2_grpc.DistillerServiceServicer):
    """Streams one message now and one after the drain has begun."""

    def __init__(self) -> None:
        self.draining = asyncio.Event()

    async def Watch(self, request, context):  # noqa: N802
        yield distiller_pb2.WatchResponse(run=distiller_pb2.Run(run_id="first"))
        if request.run_id == "forever":
            await asyncio.Event().wait()
        await self.draining.wait()
        yield distiller_pb2.WatchResponse(run=distiller_pb2.Run(run_id="last"))


class Telling:
    """Says that it is freed."""

    def __del__(self) -> None:
        os.write(2, b"taken apart\n")


KEPT: list[Telling] = []
"""Freed by nothing but the interpreter's own end."""


async def main(environ: Mapping[str, str], serving: ServingSettings) -> None:
    slow, health = Slow(), HealthState(is_ready=False)

    async def on_drain(grace_s: float) -> None:
        slow.draining.set()

    async def load() -> None:
        if environ.get("PROBE_TASK") == "fail":
            raise RuntimeError("the task broke")
        if environ.get("PROBE_TASK") == "tell":
            KEPT.append(Telling())
            atexit.register(sys.stderr.write, "hooks ran\n")
        health.mark_ready()

    def register(server: grpc.aio.Server) -> None:
        distiller_pb2_grpc.add_DistillerServiceServicer_to_server(slow, server)

    await serve(
        "probe",
        register,
        settings=serving,
        services=[SERVICE],
        health=health,
        on_drain=on_drain,
        tasks=[load],
        spans={f"/{SERVICE}/Watch": "probe.watch"},
    )


if __name__ == "__main__":
    run_service("probe", main)
