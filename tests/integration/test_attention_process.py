"""The attention worker as a process: starts from the environment, drains on SIGTERM, exits 0."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from tests.contract.attention.parts import Router, greedy, submit, write_model
from understudy.api.attention.v1 import attention_pb2_grpc
from understudy.rpc import open_channel

START_S = 150.0
PREFIX = "UNDERSTUDY_ATTENTION_"


async def start(**environ: str) -> Process:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.attention", env={**inherited, **environ}, stderr=PIPE
    )


async def ready_port(process: Process, ready_file: Path) -> int:
    async with asyncio.timeout(START_S):
        while not ready_file.exists():  # noqa: ASYNC110
            assert process.returncode is None, "The worker ended before it was ready."
            await asyncio.sleep(0.1)
    return int(json.loads(ready_file.read_text())["port"])


async def end(process: Process) -> tuple[int | None, str]:
    _, stderr = await asyncio.wait_for(process.communicate(), START_S)
    return process.returncode, stderr.decode()


async def test_worker_serves_and_drains_on_sigterm(tmp_path: Path):
    loaded = write_model(tmp_path / "tiny")
    ready_file = tmp_path / "ready.json"
    process = await start(
        **{
            f"{PREFIX}MODEL": str(tmp_path / "tiny"),
            f"{PREFIX}MODEL_NAME": "tiny",
            f"{PREFIX}THREADS": "1",
            "UNDERSTUDY_SERVING_READY_FILE": str(ready_file),
        }
    )
    try:
        channel = open_channel(f"127.0.0.1:{await ready_port(process, ready_file)}")
        router = Router(attention_pb2_grpc.AttentionServiceStub(channel))
        await router.send(submit(1, [65, 66], max_tokens=40))
        await router.read()
        process.send_signal(signal.SIGTERM)
        output = await router.result(1)
        assert output.tokens == greedy(loaded, [65, 66], 40)
        router.call.cancel()
        await channel.close(None)
        code, stderr = await end(process)
        assert code == 0, stderr
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("environ", "code", "sentence"),
    [
        ({f"{PREFIX}MODEL_NAME": "tiny"}, 2, "UNDERSTUDY_ATTENTION_MODEL is not set"),
        ({f"{PREFIX}MODEL_NAME": "tiny", f"{PREFIX}MODEL": "/nowhere"}, 1, "no model at /nowhere"),
    ],
)
async def test_worker_that_cannot_start_says_why(environ: dict[str, str], code: int, sentence: str):
    exit_code, stderr = await end(await start(**environ))
    assert exit_code == code
    assert sentence in stderr
