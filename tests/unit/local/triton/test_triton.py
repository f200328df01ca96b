"""The local Triton process: where it is found, what is packaged, what is cleaned up."""

import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.experts.metrics import ExpertsMetrics
from understudy.errors import FailedPrecondition
from understudy.local.state import PlatformState, ServiceState
from understudy.local.triton import packages, server
from understudy.local.triton.installation import cached_triton, find_triton, require_triton
from understudy.local.triton.packages import ensure_ffn_package
from understudy.local.triton.settings import TritonSettings
from understudy.local.triton.share import read_share, triton_share


def test_a_server_that_was_not_unpacked_is_named_with_the_remedy(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    assert find_triton(environ) is None
    with pytest.raises(FailedPrecondition, match=r"install_triton\.py"):
        require_triton(environ)


def test_an_unpacked_server_is_found(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    where = cached_triton(environ)
    for binary in (where.server, where.stub):
        binary.parent.mkdir(parents=True)
        binary.touch()
    assert find_triton(environ) == where


def test_only_regions_of_starters_that_are_gone_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SHARED_MEMORY", tmp_path)
    ours = tmp_path / f"understudy_triton_{os.getpid()}_1_x"
    left = tmp_path / "understudy_triton_4194305_1_x"
    foreign = tmp_path / "triton_python_backend_shm_region_x"
    for region in (ours, left, foreign):
        region.touch()
    server.remove_leftovers()
    assert (ours.exists(), left.exists(), foreign.exists()) == (True, False, True)


def test_settings_are_read_from_the_environment(tmp_path: Path) -> None:
    environ = {
        "UNDERSTUDY_TRITON_MODEL": "smollm2",
        "UNDERSTUDY_TRITON_DIRECTORY": str(tmp_path),
        "UNDERSTUDY_TRITON_GRPC_PORT": "8001",
    }
    assert TritonSettings.from_env(environ) == TritonSettings(
        "smollm2", directory=tmp_path, grpc_port=8001
    )


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that packaging would run, in place of running them."""
    run: list[str] = []

    def record(arguments: tuple[str, ...]) -> str:
        run.append(arguments[0])
        return "ffn-made\n"

    monkeypatch.setattr(packages, "_run", record)
    monkeypatch.setattr(packages, "check_package", lambda _: None)
    return run


def test_weights_are_packaged_once_and_again_when_they_change(
    tmp_path: Path, commands: list[str]
) -> None:
    weights, repository = tmp_path / "m.gguf", tmp_path / "repository"
    weights.write_bytes(b"1")
    assert ensure_ffn_package(str(weights), repository, "exact") == "ffn-made"
    assert commands == ["services.experts.export", "understudy_kernels.package"]
    (repository / "ffn-made" / "1").mkdir(parents=True)
    assert ensure_ffn_package(str(weights), repository, "exact") == "ffn-made"
    assert len(commands) == 2
    weights.write_bytes(b"22")
    ensure_ffn_package(str(weights), repository, "exact")
    assert len(commands) == 4


def test_what_the_export_says_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"no weights")
    with pytest.raises(FailedPrecondition, match=r"services\.experts\.export .* ended with 1"):
        ensure_ffn_package(str(tmp_path / "m.gguf"), tmp_path / "repository", "exact")


def test_the_share_of_triton_is_added_up_over_the_workers() -> None:
    registries = [CollectorRegistry() for _ in range(2)]
    metrics = [ExpertsMetrics.on(registry) for registry in registries]
    for each in metrics:
        each.executed.labels(place="triton").inc(600)
        each.executed.labels(place="in_process").inc(5)
    share = read_share(generate_latest(registry).decode() for registry in registries)
    assert str(share) == "Triton computed 1,200 of 1,210 feed-forwards of the LLM."
    metrics[0].fallbacks.inc(4)
    share = read_share(generate_latest(registry).decode() for registry in registries)
    assert str(share).endswith("the rest, 4 were meant for it while it was away.")


def test_without_a_triton_server_there_is_no_share() -> None:
    state = PlatformState(pid=1, started="now", services=[ServiceState("experts-0")])
    assert triton_share(state) is None
