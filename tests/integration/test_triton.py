"""The real Triton server: same sums, versions swapped under load, what must not be served."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from services.experts.clients import TritonModel, TritonShards
from services.experts.holdings import Holdings
from tests.integration.processes import wait_until
from tests.integration.triton_parts import (
    TIMEOUT_S,
    Collector,
    Packaged,
    asked,
    copied,
    greedy,
    load,
    loaded_versions,
    make_packages,
    require_installation,
    stub_pids,
)
from understudy.errors import DeadlineExceeded, FailedPrecondition, Unavailable, UnderstudyError
from understudy.exchange.frame import Header
from understudy.exchange.tensors import Request
from understudy.local.triton.server import SHARED_MEMORY, TritonServer
from understudy_kernels.package import build
from understudy_kernels.packaging import remove_version, versions
from understudy_kernels.packaging.serving.manifest import COMPILED, MANIFEST

PARENT = f"00-{'7' * 32}-{'8' * 16}-01"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    require_installation()
    return make_packages(tmp_path_factory.getbasetemp() / "packages")


@pytest.fixture(scope="module")
def server(packaged: Packaged) -> Iterator[TritonServer]:
    server = TritonServer(
        require_installation(),
        packaged.repository,
        packaged.directory / "server.log",
        models=[
            *(packaged.dense_name, packaged.mixture_name, packaged.decoder_name),
            *(packaged.rounded_name, packaged.exact_name, packaged.fast_name),
        ],
    )
    server.wait_ready()
    yield server
    server.stop()


@pytest.fixture
def shards(server: TritonServer, packaged: Packaged) -> Iterator[TritonShards]:
    holdings = Holdings.take(packaged.dense)
    shards = TritonShards(server.grpc_address, packaged.dense_name, holdings, is_local=False)
    yield shards
    shards.close()


def compute(shards: TritonShards, asked: tuple[Header, Request], traceparent: str = "") -> Tensor:
    return shards.compute(*asked, timeout_s=TIMEOUT_S, traceparent=traceparent)


@pytest.mark.parametrize("is_local", [False, True], ids=["wire", "shared memory"])
@pytest.mark.parametrize("num_tokens", [1, 2, 7, 600])
def test_a_dense_feed_forward_is_the_same_in_triton(
    server: TritonServer, packaged: Packaged, num_tokens: int, is_local: bool
) -> None:
    model, holdings = packaged.dense, Holdings.take(packaged.dense)
    shards = TritonShards(server.grpc_address, packaged.dense_name, holdings, is_local=is_local)
    request = asked(model, num_tokens)
    expected = holdings.compute(*request)
    torch.testing.assert_close(compute(shards, request), expected, rtol=1e-5, atol=1e-5)
    # The name is gone while the memory is in use: a worker that is killed leaves nothing behind.
    assert not list(SHARED_MEMORY.glob(f"understudy_experts_{os.getpid()}_*"))
    shards.close()


@pytest.mark.parametrize("layer", [0, 1], ids=["dense layer", "experts"])
@pytest.mark.parametrize("num_tokens", [1, 33])
def test_a_mixture_of_experts_is_the_same_in_triton(
    server: TritonServer, packaged: Packaged, num_tokens: int, layer: int
) -> None:
    model, holdings = packaged.mixture, Holdings.take(packaged.mixture)
    shards = TritonShards(server.grpc_address, packaged.mixture_name, holdings, is_local=False)
    request = asked(model, num_tokens, layer)
    expected = holdings.compute(*request)
    torch.testing.assert_close(compute(shards, request), expected, rtol=1e-5, atol=1e-5)
    shards.close()


@pytest.mark.parametrize("layer", [0, 1], ids=["dense layer", "experts"])
def test_a_package_of_the_kernels_gives_the_workers_own_bits(
    server: TritonServer, packaged: Packaged, layer: int
) -> None:
    model, holdings = packaged.exact, Holdings.take(packaged.exact)
    shards = TritonShards(server.grpc_address, packaged.exact_name, holdings, is_local=False)
    for num_tokens in (1, 33):
        request = asked(model, num_tokens, layer)
        assert torch.equal(compute(shards, request), holdings.compute(*request))
    shards.close()


def test_a_package_of_16_bits_is_the_same_in_triton(
    server: TritonServer, packaged: Packaged
) -> None:
    model, holdings = packaged.rounded, Holdings.take(packaged.rounded)
    shards = TritonShards(server.grpc_address, packaged.rounded_name, holdings, is_local=False)
    request = asked(model, 7)
    expected = holdings.compute(*request)
    torch.testing.assert_close(compute(shards, request), expected, rtol=1e-5, atol=1e-5)
    shards.close()


@pytest.mark.parametrize("compute", ["reference", "fast"])
def test_a_whole_model_decodes_several_sequences_in_one_call(
    server: TritonServer, packaged: Packaged, compute: str
) -> None:
    prompts, num_steps = [[3, 5, 7, 9, 11], [2], [50, 60, 70]], 12
    tokens = torch.zeros(len(prompts), 5, dtype=torch.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    served = {"reference": packaged.decoder_name, "fast": packaged.fast_name}
    model = TritonModel(server.grpc_address, served[compute])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    named = (("tokens", tokens), ("lengths", lengths), ("steps", torch.tensor([num_steps])))
    answer = model.infer(named, timeout_s=TIMEOUT_S)
    here = packaged.dense if compute == "reference" else packaged.fast
    assert answer.tolist() == [greedy(here, prompt, num_steps) for prompt in prompts]
    with pytest.raises(UnderstudyError, match="the model has 256"):
        model.infer((*named[:2], ("steps", torch.tensor([300]))), timeout_s=TIMEOUT_S)
    model.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector
        collector.shutdown()


@pytest.fixture
def traced_server(packaged: Packaged, collector: Collector) -> Iterator[TritonServer]:
    """Traces each call. Alone, and for few calls: see docs/decisions/0007."""
    url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    traced = ("mode=opentelemetry", "level=TIMESTAMPS", "rate=1", f"opentelemetry,url={url}")
    server = TritonServer(
        require_installation(),
        packaged.repository,
        packaged.directory / "traced-server.log",
        models=[packaged.dense_name],
        arguments=[argument for one in traced for argument in ("--trace-config", one)],
    )
    server.wait_ready()
    yield server
    server.stop()


def test_the_trace_context_of_a_call_reaches_the_servers_spans(
    traced_server: TritonServer, packaged: Packaged, collector: Collector
) -> None:
    holdings = Holdings.take(packaged.dense)
    address, name = traced_server.grpc_address, packaged.dense_name
    shards = TritonShards(address, name, holdings, is_local=False)

    def is_told() -> bool:
        compute(shards, asked(packaged.dense, 1), PARENT)
        return any(span["traceId"] == "7" * 32 for span in collector.spans)

    # Asked again and again: the server drops what it cannot export in time.
    wait_until(is_told, "a span of the attempt's trace")
    shards.close()
    ours = [span for span in collector.spans if span["traceId"] == "7" * 32]
    assert any(span.get("parentSpanId") == "8" * 16 for span in ours)


def test_a_new_version_replaces_the_old_one_under_load_and_no_call_fails(
    server: TritonServer, shards: TritonShards, packaged: Packaged
) -> None:
    request = asked(packaged.dense, 9)
    expected = Holdings.take(packaged.dense).compute(*request)
    is_over, failures, num_calls = threading.Event(), [], [0, 0]

    def hammer(caller: int) -> None:
        while not is_over.is_set():
            try:
                torch.testing.assert_close(compute(shards, request), expected)
                num_calls[caller] += 1
            except (UnderstudyError, AssertionError) as error:
                failures.append(error)

    callers = [threading.Thread(target=hammer, args=(caller,)) for caller in range(2)]
    for caller in callers:
        caller.start()
    before = loaded_versions(server, packaged.dense_name)
    version = build(packaged.directory / "ffn", packaged.repository)
    load(server, packaged.dense_name)
    wait_until(
        lambda: loaded_versions(server, packaged.dense_name) == {version},
        "the new version alone to be loaded",
    )
    answered = sum(num_calls)
    wait_until(lambda: sum(num_calls) > answered + 10, "calls of the new version")
    is_over.set()
    for caller in callers:
        caller.join(TIMEOUT_S)
    assert failures == []
    assert before == {version - 1}
    remove_version(packaged.repository, packaged.dense_name, version - 1)
    assert versions(packaged.repository, packaged.dense_name) == [version]
    compute(shards, request)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"torch_version": "1.0"}, "torch version 1.0"),
        ({"isa": ["avx9"]}, "ISA with avx9"),
        ({"config_digest": "ef" * 32}, "config digest efefefefefef"),
    ],
)
def test_a_package_that_does_not_match_is_refused_by_name(
    server: TritonServer, packaged: Packaged, changes: dict[str, object], words: str
) -> None:
    with copied(packaged, "ffn-mismatched") as package:
        manifest = json.loads((package / MANIFEST).read_text())
        (package / MANIFEST).write_text(json.dumps(manifest | changes))
        with pytest.raises(Unavailable, match=words):
            refused(server, packaged, "ffn-mismatched")


@pytest.mark.parametrize("name", [COMPILED, MANIFEST])
def test_a_rubbish_package_is_refused_and_the_server_goes_on(
    server: TritonServer, shards: TritonShards, packaged: Packaged, name: str
) -> None:
    with copied(packaged, "ffn-rubbish") as package:
        (package / name).write_bytes(b"rubbish")
        with pytest.raises(Unavailable, match=name):
            refused(server, packaged, "ffn-rubbish")
    compute(shards, asked(packaged.dense, 1))


def test_a_model_of_other_weights_is_refused_with_both_digests(
    server: TritonServer, packaged: Packaged
) -> None:
    wanted = replace(Holdings.take(packaged.dense), values_digest="ef" * 32)
    other = TritonShards(server.grpc_address, packaged.dense_name, wanted, is_local=False)
    with pytest.raises(FailedPrecondition, match=r"config digest \w+, this worker efefefefefef"):
        other.check(TIMEOUT_S)
    other.close()


def test_a_model_that_lacks_what_the_worker_holds_is_refused_by_layer(
    server: TritonServer, packaged: Packaged
) -> None:
    wanted = replace(Holdings.take(packaged.dense), layers=range(2, 5))
    other = TritonShards(server.grpc_address, packaged.dense_name, wanted, is_local=False)
    with pytest.raises(FailedPrecondition, match="lacks layers 3, 4, which this worker holds"):
        other.check(TIMEOUT_S)
    other.close()


def test_a_call_ends_with_its_timeout(shards: TritonShards, packaged: Packaged) -> None:
    with pytest.raises(DeadlineExceeded):
        shards.compute(*asked(packaged.dense, 600), timeout_s=0.0001, traceparent="")


def test_a_stub_that_died_fails_calls_while_its_model_is_ready_and_loading_again_mends_it(
    server: TritonServer, shards: TritonShards, packaged: Packaged
) -> None:
    request = asked(packaged.dense, 1)
    compute(shards, request)
    for pid in stub_pids(server):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(UnderstudyError):
        compute(shards, request)
    assert loaded_versions(server, packaged.dense_name)
    shards.reload(TIMEOUT_S)
    compute(shards, request)


def refused(server: TritonServer, packaged: Packaged, name: str) -> None:
    shards = TritonShards(server.grpc_address, name, Holdings.take(packaged.dense), is_local=False)
    try:
        shards.reload(TIMEOUT_S)
    finally:
        shards.close()
