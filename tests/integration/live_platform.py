"""One platform that really runs, as `understudy demo` starts it, for the tests that share it.

The two Redis servers are the tests' own, named in the settings, so that a test can take one away
for as long as it likes; everything else is the platform's and comes back by itself.
"""

import asyncio
import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.processes import LOOPBACK, wait_until
from understudy import Answer, Client
from understudy.api.attention.v1 import attention_pb2, attention_pb2_grpc
from understudy.local.platform import Platform, start_platform
from understudy.local.ports import answers_ping, free_port
from understudy.local.processes import Child, child_environment, is_running
from understudy.local.services import valkey_binary
from understudy.local.settings import LocalSettings
from understudy.local.state import Phase, PlatformState, ServiceState
from understudy.workloads import find_workload
from understudy.workloads.snips.dataset import Row, load_split

START_TIMEOUT_S = 600.0
CALL_TIMEOUT_S = 120.0
MAX_ROWS_ASKED = 60
LENGTHS = range(60, 90)

KV_ARGUMENTS = ("--save", "", "--appendonly", "no")
CONTROL_ARGUMENTS = ("--save", "", "--appendonly", "yes", "--appendfsync", "everysec")


class Redis:
    """A Valkey that tests kill and start again on the same port, with the same files."""

    def __init__(self, directory: Path, arguments: tuple[str, ...]) -> None:
        directory.mkdir()
        self.port = free_port()
        self._directory = directory
        listen = ("--bind", LOOPBACK, "--port", str(self.port), "--dir", str(directory))
        self._argv = (valkey_binary(), *listen, *arguments)
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = self._directory / "valkey.log"
        self._child = Child(self._argv, child_environment(os.environ), log)
        wait_until(lambda: answers_ping(LOOPBACK, self.port), "Valkey to answer")

    def kill(self) -> None:
        """Kill it with -9."""
        if self._child is not None:
            self._child.kill()


@dataclass
class LivePlatform:
    """The platform, and what a test does to it."""

    platform: Platform
    kv: Redis
    control: Redis

    @property
    def grpc_address(self) -> str:
        return self.platform.grpc_address

    @property
    def openai_url(self) -> str:
        return f"{self.platform.http_url}/v1"

    @property
    def traces(self) -> Path:
        return self.platform.traces

    def service(self, name: str) -> ServiceState:
        """Return how a service is now."""
        state = PlatformState.load(self.platform.run_dir)
        assert state is not None
        assert state.phase is Phase.READY, state.failure
        return state.service(name)

    def kill(self, name: str) -> None:
        """Kill a service with -9."""
        os.kill(self.service(name).pid, signal.SIGKILL)

    def info(self, name: str) -> attention_pb2.InfoResponse:
        """Ask an attention worker how it is."""
        with grpc.insecure_channel(f"{LOOPBACK}:{self.service(name).port}") as channel:
            stub = attention_pb2_grpc.AttentionServiceStub(channel)
            return stub.Info(attention_pb2.InfoRequest(), timeout=CALL_TIMEOUT_S)

    def is_idle(self, name: str) -> bool:
        """Say whether an attention worker runs nothing and every block of its KV is free."""
        info = self.info(name)
        is_free = info.num_free_blocks == info.num_blocks
        return is_free and info.num_running == info.num_waiting == 0

    def metric(self, name: str, sample: str, **labels: str) -> float:
        """Return the sum of a service's samples of this name that carry these labels."""
        url = f"http://{LOOPBACK}:{self.service(name).metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=CALL_TIMEOUT_S) as response:
            families = text_string_to_metric_families(response.read().decode())
            return sum(
                found.value
                for family in families
                for found in family.samples
                if found.name == sample and labels.items() <= found.labels.items()
            )


@contextmanager
def live_platform(directory: Path) -> Iterator[LivePlatform]:
    """Run a platform for as long as the block."""
    with ExitStack() as stack:
        kv = Redis(directory / "redis-kv", KV_ARGUMENTS)
        control = Redis(directory / "redis-control", CONTROL_ARGUMENTS)
        for redis in (kv, control):
            stack.callback(redis.kill)
            redis.start()
        settings = LocalSettings(
            run_dir=directory / "run",
            http_port=0,
            grpc_port=0,
            kv_redis=kv.url,
            control_redis=control.url,
            start_timeout_s=START_TIMEOUT_S,
        )
        platform = stack.enter_context(start_platform(settings, lambda _: None, is_bound=True))
        yield LivePlatform(platform, kv, control)
        state = PlatformState.load(settings.run_dir)
    assert state is not None
    left = [one.name for one in state.services if is_running(one.pid, one.started)]
    assert not left, "the platform left processes behind"


@dataclass(frozen=True)
class Asked:
    """An utterance and what the platform answered."""

    row: Row
    answer: Answer


@dataclass(frozen=True)
class Cast:
    """Two utterances that the SLM was not trained on: one it answered, one that escalated."""

    accepted: Asked
    escalated: Asked


def ask_until_both(address: str) -> Cast:
    """Ask utterances until one was answered by the SLM and one was escalated.

    They are as short as they can be, and long enough to be looked up in the kvstore.
    """
    tools = find_workload("snips").tools
    fitting = [row for row in load_split("dev") if len(row.text) in LENGTHS]
    rows = fitting[:MAX_ROWS_ASKED]
    accepted = escalated = None
    with Client(address, timeout_s=CALL_TIMEOUT_S) as client:
        for row in rows:
            answer = client.complete(messages=[{"role": "user", "content": row.text}], tools=tools)
            if answer.decision.is_escalated:
                escalated = escalated or Asked(row, answer)
            else:
                accepted = accepted or Asked(row, answer)
            if accepted and escalated:
                return Cast(accepted, escalated)
    raise AssertionError(f"{len(rows)} utterances all went to one pool: {answer.decision}")


class CuttableProxy:
    """Forwards TCP connections to an address; `cut` breaks those that are open."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.num_accepted = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        self.cut()
        await self._server.wait_closed()
        await asyncio.gather(*self._serving)

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Break every connection without a word."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        self.num_accepted += 1
        self._writers.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:  # nobody listens there any more
            writer.transport.abort()
            return
        finally:
            self._writers.discard(writer)
        ends = {writer, far_writer}
        self._writers |= ends
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(reader, far_writer))
                pumps.create_task(_pump(far_reader, writer))
        finally:
            self._writers -= ends


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward until one side ends, then end the other one."""
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
