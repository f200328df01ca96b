"""Pools of tests that stand behind external engines."""

from __future__ import annotations

import json
from typing import Any

from understudy.testing.fake_engine import FakeEngine

PARAMETERS = 1000


def external(name: str, *urls: str, model: str = "engine-model", **more: object) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "openai",
        "urls": list(urls),
        "model": model,
        "position_parameters": PARAMETERS,
        **more,
    }


def native(town: Any, name: str) -> dict[str, Any]:
    if name == "slm":
        return {
            "name": "slm",
            "workers": [town.slm_address],
            "version_dir": str(town.directory / "slm"),
        }
    return {"name": "llm", "workers": [town.llm_address]}


async def start(town: Any, engine: FakeEngine) -> str:
    url = await engine.start()
    town.stack.push_async_callback(engine.stop)
    return url


async def open_over(town: Any, *engines: FakeEngine, **changes: object) -> Any:
    """A router with the native SLM and an LLM behind these engines."""
    urls = [await start(town, engine) for engine in engines]
    pools = [native(town, "slm"), external("llm", *urls)]
    return await town.open(pools=json.dumps(pools), **changes)
