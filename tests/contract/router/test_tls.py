"""The edge over TLS: what SDK and HTTP callers see, and certificates that change under way."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from deploy.certificates import Authority, Validity, main, publish
from services.router.clients.controller import ControllerClient
from tests.contract.router.conftest import House, Town
from tests.contract.router.controllers import Sizing, serve_controller
from understudy import AsyncClient, Client, InvalidArgument, RetryPolicy, Tls, Unavailable
from understudy.serving import Identity, ServingSettings, Transport

VALID = Validity.of(1, datetime.now(UTC))
NO_RETRIES = RetryPolicy(max_attempts=1)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.make("public", VALID)


def renew(folder: Path, authority: Authority) -> None:
    chain, key = authority.issue("localhost", VALID)
    publish(folder, {"tls.crt": chain, "tls.key": key})


@pytest.fixture
async def house(town: Town, authority: Authority) -> House:
    renew(town.directory / "public", authority)
    identity = Identity(town.directory / "public", is_public=True)
    return await town.open(Transport(public=identity))


def trusting(authority: Authority) -> Tls:
    return Tls(authority.pem, name="localhost")


async def test_the_asyncio_client_is_answered_over_tls(house: House, authority: Authority) -> None:
    async with AsyncClient(house.service.address, tls=trusting(authority)) as client:
        assert [model.id for model in await client.models()] == ["auto", "slm", "llm"]


async def test_the_blocking_client_is_answered_over_tls(house: House, authority: Authority) -> None:
    def ask() -> list[str]:
        with Client(house.service.address, tls=trusting(authority)) as client:
            return [model.id for model in client.models()]

    assert await asyncio.to_thread(ask) == ["auto", "slm", "llm"]


async def test_a_client_without_tls_is_told_that_the_platform_may_want_it(house: House) -> None:
    async with AsyncClient(house.service.address, retries=NO_RETRIES) as client:
        with pytest.raises(Unavailable, match="it may want TLS"):
            await client.models()


async def test_a_client_that_trusts_others_is_told_so(house: House) -> None:
    tls = trusting(Authority.make("another", VALID))
    async with AsyncClient(house.service.address, retries=NO_RETRIES, tls=tls) as client:
        with pytest.raises(Unavailable, match="No authority that is trusted here"):
            await client.models()


async def test_the_http_edge_shows_new_certificates_without_a_restart(
    house: House, town: Town, authority: Authority
) -> None:
    assert house.router.edge is not None
    port = house.router.edge.port
    trusted = ssl.create_default_context(cadata=authority.pem.decode())

    async def serial() -> int:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusted, server_hostname="localhost"
        )
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return x509.load_der_x509_certificate(shown).serial_number

    first = await serial()
    assert await serial() == first

    renew(town.directory / "public", authority)
    second = await serial()
    publish(town.directory / "public", {"tls.crt": b"half", "tls.key": b""})

    assert second != first
    assert await serial() == second


def test_a_file_of_authorities_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"roots\.pem cannot be read \(No such file"):
        Tls.trusting(tmp_path / "roots.pem")
    (tmp_path / "roots.pem").write_text("nothing")
    with pytest.raises(InvalidArgument, match="holds no certificate in PEM"):
        Tls.trusting(tmp_path / "roots.pem")


async def test_what_a_router_holds_is_reported_over_tls(town: Town) -> None:
    folder, sizing = town.directory / "certificates", Sizing()
    main(["make", str(folder)])
    settings = ServingSettings(tls_dir=folder / "controller")
    address = await serve_controller(town.stack, sizing, settings)
    peer = Identity(folder / "router", "understudy").peer("controller")
    client = ControllerClient([address], "router-1", peer)

    assert (await client.report({"llm": 1})).keys() == {"llm"}
    assert sizing.reports == [{"llm": 1}]
    await client.aclose()
