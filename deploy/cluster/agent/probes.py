"""Probes of containers: gRPC health, HTTP, TCP and programs, with Kubernetes' own defaults."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.cluster.agent.api import Json

Exec = Callable[[list[str], float], Awaitable[str]]
"""Run a program in the container for so many seconds at most; returns what is wrong, or nothing."""

_FIRST_BAD_STATUS = 400
_FIRST_GOOD_STATUS = 200


@dataclass(frozen=True, slots=True)
class Target:
    """What is probed."""

    address: str
    ports: dict[str, int]
    run: Exec

    def port(self, named: int | str) -> int:
        """Return the number of a port that may be given by name."""
        return named if isinstance(named, int) else self.ports[named]


async def check(probe: Json, target: Target) -> str:
    """Probe once; return what is wrong, or an empty text."""
    timeout_s = float(probe.get("timeoutSeconds", 1))
    try:
        async with asyncio.timeout(timeout_s):
            if "grpc" in probe:
                return await _check_grpc(probe["grpc"], target, timeout_s)
            if "httpGet" in probe:
                return await check_http(probe["httpGet"], target)
            if "tcpSocket" in probe:
                return await _check_tcp(probe["tcpSocket"], target)
            return await target.run(probe["exec"]["command"], timeout_s)
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"


async def _check_grpc(source: Json, target: Target, timeout_s: float) -> str:
    request = health_pb2.HealthCheckRequest(service=source.get("service", ""))
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    place = f"{target.address}:{source['port']}"
    async with grpc.aio.insecure_channel(place, options=options) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return f"health is {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}"


async def check_http(source: Json, target: Target) -> str:
    """Ask for a page; return what is wrong, or an empty text. Certificates are not checked."""
    host = source.get("host") or target.address
    scheme = source.get("scheme", "HTTP").lower()
    url = f"{scheme}://{host}:{target.port(source['port'])}{source.get('path', '/')}"
    headers = {entry["name"]: entry["value"] for entry in source.get("httpHeaders", [])}
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
            session.get(url, headers=headers) as answer,
        ):
            status = answer.status
    except aiohttp.ClientError as error:
        return str(error)
    return "" if _FIRST_GOOD_STATUS <= status < _FIRST_BAD_STATUS else f"HTTP status {status}"


async def _check_tcp(source: Json, target: Target) -> str:
    try:
        _, writer = await asyncio.open_connection(
            source.get("host") or target.address, target.port(source["port"])
        )
    except OSError as error:
        return str(error)
    writer.close()
    return ""


async def watch(
    probe: Json, target: Target, tell: Callable[[bool, str], None], *, starts_good: bool
) -> None:
    """Probe for ever; tell each time the verdict changes, and at every failure past the bar."""
    await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
    needs = {True: probe.get("successThreshold", 1), False: probe.get("failureThreshold", 3)}
    verdict, run_of, num = starts_good, starts_good, 0
    while True:
        problem = await check(probe, target)
        is_good = not problem
        num = num + 1 if is_good == run_of else 1
        run_of = is_good
        if num >= needs[is_good] and (verdict != is_good or not is_good):
            verdict = is_good
            tell(is_good, problem)
        await asyncio.sleep(float(probe.get("periodSeconds", 10)))
