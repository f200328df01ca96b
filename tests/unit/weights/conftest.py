"""A store on loopback, a volume in a temporary folder, and a fetcher that does not pause."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.weights.store_server import StoreServer, serving
from understudy.weights.fetching import Fetcher
from understudy.weights.settings import ModelSource
from understudy.weights.store import Store
from understudy.weights.web import Web

FOLDER = "llm-0123456789abcdef"
FILES = {"config.json": b"{}", "shards/model-1.safetensors": b"weights" * 1000, "b": b"second" * 99}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sums(files: dict[str, bytes]) -> str:
    return "".join(f"{sha(content)}  {name}\n" for name, content in files.items())


@pytest.fixture
def server() -> Iterator[StoreServer]:
    with serving(StoreServer()) as store:
        store.files = {f"/bucket/llm/{name}": content for name, content in FILES.items()}
        yield store


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / "volume"
    folder.mkdir()
    return folder


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def fetcher(volume: Path, pauses: list[float]) -> Fetcher:
    return Fetcher(Store(volume), lambda _: Web(), pauses.append)


@pytest.fixture
def model(server: StoreServer) -> Callable[..., ModelSource]:
    def make(**changes: Any) -> ModelSource:
        fields: dict[str, Any] = {
            "folder": FOLDER,
            "source": "s3://bucket/llm/",
            "sums": sums(FILES),
            "max_bytes": 1_000_000,
            "endpoint": server.address,
        }
        return ModelSource(**{**fields, **changes})

    return make
