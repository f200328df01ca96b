"""The local runner with an LLM behind an engine: the SLM runs here, nothing of the LLM does."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from understudy import Client
from understudy.client.results import DecisionReason, Gap
from understudy.local.platform import start_platform
from understudy.local.settings import LocalSettings
from understudy.local.state import PlatformState
from understudy.testing.fake_engine import FakeEngine, spoken
from understudy.workloads import find_workload
from understudy.workloads.snips.dataset import load_split

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HELLO: list[Any] = [{"role": "user", "content": "Hello?"}]
MAX_ROWS = 20


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """An engine on a loop of its own: the runner blocks this thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    made = FakeEngine(lambda _: spoken("Hello from outside."))
    asyncio.run_coroutine_threadsafe(made.start(), loop).result(10)
    yield made
    asyncio.run_coroutine_threadsafe(made.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_the_platform_starts_in_front_of_an_engine(engine: FakeEngine, tmp_path: Path) -> None:
    pool = {"urls": [engine.url], "model": "engine-model", "position_parameters": 10**9}
    (tmp_path / "pool.json").write_text(json.dumps(pool), encoding="utf-8")
    settings = LocalSettings(
        run_dir=tmp_path / "run", http_port=0, grpc_port=0, llm_pool=f"@{tmp_path / 'pool.json'}"
    )
    with start_platform(settings, lambda _: None, is_bound=True) as platform:
        state = PlatformState.load(platform.run_dir)
        assert state is not None
        names = {service.name for service in state.services}
        assert {"router", "attention-slm", "kvstore"} <= names
        assert not {"attention-llm", "experts-0", "controller"} & names
        with Client(platform.grpc_address, timeout_s=120) as client:
            said = client.complete(messages=HELLO)
            assert said.text == "Hello from outside."
            assert said.decision.attempts[0].gaps == (Gap.MARGINS, Gap.RESUME)
            assert any(
                client.complete(
                    messages=[{"role": "user", "content": row.text}],
                    tools=find_workload("snips").tools,  # type: ignore[typeddict-item]
                ).decision.reason
                is DecisionReason.SLM_ACCEPTED
                for row in load_split("dev")[:MAX_ROWS]
            )
