"""Services that know each other by certificates: who is let in, and what a change of them costs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deploy.certificates import Authority, Validity, publish
from tests.contract.chassis.conftest import CHAT, Running, Start
from understudy import errors
from understudy.api.distiller.v1 import distiller_pb2, distiller_pb2_grpc
from understudy.rpc import Peer, from_rpc_error, open_channel, open_sync_channel
from understudy.serving import Identity, ServingSettings

NOW = datetime.now(UTC)
VALID = Validity.of(1, NOW)
ENDED = Validity(NOW - timedelta(days=2), NOW - timedelta(days=1))
BEFORE_THE_END = NOW - timedelta(days=1, hours=1)
DOMAIN = "understudy"

Give = Callable[..., Path]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("ours", VALID)


@pytest.fixture(scope="module")
def other() -> Authority:
    return Authority.make("another", VALID)


@pytest.fixture
def give(tmp_path: Path, authority: Authority) -> Give:
    """Put certificates into the folder of a component."""

    def write(
        component: str,
        issuer: Authority = authority,
        *trusted: Authority,
        validity: Validity = VALID,
    ) -> Path:
        chain, key = issuer.issue(f"{component}.{DOMAIN}", validity)
        roots = b"".join(each.pem for each in trusted or (issuer,))
        publish(tmp_path / component, {"tls.crt": chain, "tls.key": key, "ca.crt": roots})
        return tmp_path / component

    return write


@pytest.fixture
async def probe(start: Start, give: Give) -> Running:
    """A service called `probe` that the router may call."""
    settings = ServingSettings(tls_dir=give("probe"), health_listen="127.0.0.1:0")
    return await start(settings=settings, callers=("router",))


def peer_of(folder: Path, component: str = "probe") -> Peer:
    return Identity(folder, DOMAIN).peer(component)


@asynccontextmanager
async def stub_of(
    running: Running, peer: Peer | None
) -> AsyncIterator[distiller_pb2_grpc.DistillerServiceAsyncStub]:
    async with open_channel(running.service.address, peer=peer) as channel:
        yield distiller_pb2_grpc.DistillerServiceStub(channel)


async def submit(stub: distiller_pb2_grpc.DistillerServiceAsyncStub) -> object:
    return await stub.Submit(distiller_pb2.SubmitRequest(), timeout=20)


async def refusal(running: Running, peer: Peer | None) -> errors.UnderstudyError:
    async with stub_of(running, peer) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            await submit(stub)
    return from_rpc_error(caught.value)


async def test_a_component_that_may_call_is_served(probe: Running, give: Give) -> None:
    async with stub_of(probe, peer_of(give("router"))) as stub:
        assert await submit(stub)
    assert not probe.probe.error


async def test_a_synchronous_caller_is_served(probe: Running, give: Give) -> None:
    peer = peer_of(give("router"))

    def call() -> list[distiller_pb2.WatchResponse]:
        with open_sync_channel(probe.service.address, peer=peer) as channel:
            stub = distiller_pb2_grpc.DistillerServiceStub(channel)
            stub.Submit(distiller_pb2.SubmitRequest(), timeout=20)
            return list(stub.Watch(distiller_pb2.WatchRequest(), timeout=20))

    assert len(await asyncio.to_thread(call)) == 2


async def test_a_component_that_may_not_call_is_told_who_may(probe: Running, give: Give) -> None:
    failure = await refusal(probe, peer_of(give("kvstore")))

    assert isinstance(failure, errors.Unauthenticated)
    assert failure.message == (
        "The certificate of the caller is that of kvstore; this service takes calls from router."
    )
    method = f"/{'understudy.api.distiller.v1.DistillerService'}/Submit"
    labels = {"method": method, "code": "UNAUTHENTICATED"}
    assert probe.registry.get_sample_value("understudy_serving_calls_total", labels) == 1


async def test_a_stream_of_a_component_that_may_not_call_is_refused(
    probe: Running, give: Give
) -> None:
    peer = peer_of(give("kvstore"))
    async with open_channel(probe.service.address, peer=peer) as channel:
        call = channel.stream_stream(CHAT)(timeout=20)
        await call.write(b"hello")
        with pytest.raises(grpc.RpcError) as caught:
            await call.read()
    assert isinstance(from_rpc_error(caught.value), errors.Unauthenticated)


async def test_a_caller_without_a_certificate_is_refused(
    probe: Running, authority: Authority
) -> None:
    bare = grpc.ssl_channel_credentials(authority.pem)

    failure = await refusal(probe, Peer("probe.understudy", lambda: bare))

    assert isinstance(failure, errors.Unavailable)
    assert "it may want TLS, or a certificate of an authority that it trusts" in failure.message


async def test_a_certificate_of_a_foreign_authority_is_refused(
    probe: Running, give: Give, authority: Authority, other: Authority
) -> None:
    failure = await refusal(probe, peer_of(give("router", other, authority, other)))

    assert "a certificate of an authority that it trusts" in failure.message


async def test_a_service_of_a_foreign_authority_is_not_talked_to(
    probe: Running, give: Give, other: Authority
) -> None:
    failure = await refusal(probe, peer_of(give("router", other)))

    assert "No authority that is trusted here issued the peer's certificate" in failure.message


async def test_another_component_at_the_address_is_not_talked_to(
    probe: Running, give: Give
) -> None:
    failure = await refusal(probe, peer_of(give("router"), "experts"))

    assert "another name than the component that was dialled" in failure.message


async def test_a_plaintext_caller_is_told_that_the_peer_may_want_tls(probe: Running) -> None:
    failure = await refusal(probe, None)

    assert isinstance(failure, errors.Unavailable)
    assert "it may want TLS" in failure.message


async def test_a_caller_over_tls_is_told_that_the_peer_speaks_none(
    start: Start, give: Give
) -> None:
    failure = await refusal(await start(), peer_of(give("router")))

    assert failure.message.startswith("The peer does not speak TLS")


async def test_a_service_whose_certificate_has_ended_is_refused_with_the_reason(
    give: Give,
) -> None:
    long_ago = Identity(give("probe", validity=ENDED), DOMAIN, now=lambda: BEFORE_THE_END)
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", long_ago.server_credentials())
    await server.start()
    async with open_channel(f"127.0.0.1:{port}", peer=peer_of(give("router"))) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await channel.unary_unary("/understudy.test.Chat/Chat")(b"", timeout=20)
    await server.stop(None)

    assert "The peer's certificate has ended; renew it." in from_rpc_error(caught.value).message


async def test_a_caller_whose_certificate_has_ended_is_refused(probe: Running, give: Give) -> None:
    ended = Identity(give("router", validity=ENDED), DOMAIN, now=lambda: BEFORE_THE_END)

    failure = await refusal(probe, ended.peer("probe"))

    assert isinstance(failure, errors.Unavailable)


async def test_reflection_answers_any_component_and_nobody_without_certificate(
    probe: Running, give: Give
) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with open_channel(probe.service.address, peer=peer_of(give("kvstore"))) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert "understudy.api.distiller.v1.DistillerService" in names


async def test_probes_are_answered_in_plaintext_on_their_own_port(probe: Running) -> None:
    async with open_channel(f"127.0.0.1:{probe.service.health_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest
        assert (await stub.Check(asked(), timeout=20)).status == 1
        assert (await stub.Check(asked(service="liveness"), timeout=20)).status == 1
        probe.health.mark_unready("a test")
        assert (await stub.Check(asked(), timeout=20)).status == 2
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Check(asked(service="elsewhere"), timeout=20)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("method", ["/grpc.health.v1.Health/Watch", "/x/Submit", CHAT])
async def test_the_port_of_probes_does_nothing_else(probe: Running, method: str) -> None:
    async with open_channel(f"127.0.0.1:{probe.service.health_port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await channel.unary_unary(method)(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_broken_files_leave_the_certificates_in_use_and_are_counted(
    probe: Running, give: Give, caplog: pytest.LogCaptureFixture
) -> None:
    folder = give("router").with_name("probe")
    publish(folder, {"tls.crt": b"half", "tls.key": b"", "ca.crt": b""})

    with caplog.at_level(logging.INFO, "understudy"):
        for _ in range(3):
            async with stub_of(probe, peer_of(give("router"))) as stub:
                assert await submit(stub)

    towards = {"towards": "peers"}
    sample = probe.registry.get_sample_value
    assert sample("understudy_serving_certificate_refusals_total", towards) == 1
    remaining = sample("understudy_serving_certificate_remaining_seconds", towards)
    assert remaining is not None and 0 < remaining <= 86_400
    refused = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(refused) == 1
    assert "PRIVATE KEY" not in caplog.text
