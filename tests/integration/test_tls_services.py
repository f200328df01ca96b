"""The services as processes with certificates: same tokens, and an authority replaced under way."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from deploy.certificates import Installation, main
from tests.integration.processes import Processes, Running, run_session, submit_of
from understudy import Client
from understudy.api.attention.v1 import attention_pb2, attention_pb2_grpc
from understudy.errors import Unauthenticated, Unavailable
from understudy.rpc import WITHOUT_POLICY, from_rpc_error, open_sync_channel
from understudy.serving import Identity
from understudy.text.tokenizer import Tokenizer

NUM_TOKENS = 24
STEPS = {6: "trust", 12: "switch", 18: "finish"}
"""What is done with the authority once so many tokens have come."""


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    main(["make", str(tmp_path / "certificates")])
    return Installation(tmp_path / "certificates")


@pytest.fixture
def secured(tmp_path: Path, installation: Installation) -> Iterator[Processes]:
    """Processes that talk over TLS."""
    started = Processes(tmp_path, installation.folder)
    yield started
    started.stop()


def start_attention(processes: Processes, smollm2: Path, placement: str, kvstore: str) -> Running:
    return processes.start(
        "attention",
        model=str(smollm2),
        model_name="smollm2",
        pool="llm",
        ffn="remote",
        placement=placement,
        kvstore=kvstore,
        threads="1",
    )


def failure_of(address: str, identity: Identity | None) -> Exception:
    peer = None if identity is None else identity.peer("attention")
    with open_sync_channel(address, options=WITHOUT_POLICY, peer=peer) as channel:
        stub = attention_pb2_grpc.AttentionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Info(attention_pb2.InfoRequest(), timeout=20)
    return from_rpc_error(caught.value)


def test_a_disaggregated_model_keeps_its_tokens_while_the_authority_is_replaced(
    secured: Processes, installation: Installation, smollm2: Path
) -> None:
    experts = [secured.start("experts", model=str(smollm2)) for _ in range(2)]
    pools = [{"pool": "llm", "replicas": [worker.address for worker in experts]}]
    controller = secured.start("controller", pools=json.dumps(pools))
    kvstore = secured.start("kvstore")
    attention = start_attention(secured, smollm2, controller.address, kvstore.address)
    as_router = Identity(installation.folder / "router", "understudy")
    prompt = Tokenizer.from_gguf(smollm2).encode("Once upon a time, in a small village,")
    left = dict(STEPS)

    def replace(num_tokens: int) -> None:
        for step in [left.pop(number) for number in sorted(left) if number <= num_tokens]:
            main([step, str(installation.folder)])

    def tokens() -> list[int]:
        submit = submit_of(1, prompt, NUM_TOKENS)
        peer = as_router.peer("attention")
        [outcome] = run_session(attention.address, [submit], replace, peer).values()
        assert not outcome.failed
        return outcome.tokens

    under_way = tokens()
    assert not left
    assert tokens() == under_way

    # A worker that starts now is dialled with certificates of the new authority.
    experts[0].child.kill()
    secured.start("experts", port=experts[0].port, model=str(smollm2))
    experts[1].child.kill()
    assert tokens() == under_way

    assert isinstance(failure_of(attention.address, None), Unavailable)
    as_kvstore = Identity(installation.folder / "kvstore", "understudy")
    assert isinstance(failure_of(attention.address, as_kvstore), Unauthenticated)

    router = secured.start(
        "router",
        pools=json.dumps([{"name": "llm", "workers": [attention.address]}]),
        tokenizer=str(smollm2),
        http_listen="",
    )
    with Client(router.address, timeout_s=120) as client:
        assert client.complete(prompt="Hello", model="llm", max_tokens=4).usage.completion_tokens
