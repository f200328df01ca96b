"""Cluster DNS and the ports of Services."""

import socket
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deploy.cluster.agent.names import addresses, answer, split
from deploy.cluster.agent.services import port_number

HEADLESS: dict[str, Any] = {"spec": {"clusterIP": "None"}}
SLICE: dict[str, Any] = {
    "ports": [{"name": "grpc", "port": 9000}],
    "endpoints": [
        {"addresses": ["10.244.1.3"], "hostname": "w-1", "conditions": {"ready": True}},
        {"addresses": ["10.244.1.2"], "hostname": "w-0", "conditions": {"ready": True}},
        {"addresses": ["10.244.1.4"], "hostname": "w-2", "conditions": {"ready": False}},
    ],
}


def query(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def test_a_headless_service_is_its_ready_endpoints() -> None:
    assert addresses(HEADLESS, [SLICE], "") == ["10.244.1.2", "10.244.1.3"]
    assert addresses(HEADLESS, [SLICE], "w-1") == ["10.244.1.3"]
    assert addresses(HEADLESS, [SLICE], "w-2") is None


def test_unready_endpoints_are_published_where_the_service_says_so() -> None:
    service = {"spec": {"clusterIP": "None", "publishNotReadyAddresses": True}}
    assert addresses(service, [SLICE], "w-2") == ["10.244.1.4"]


def test_a_service_with_an_address_is_that_address() -> None:
    service = {"spec": {"clusterIP": "10.96.3.4"}}
    assert addresses(service, [SLICE], "") == ["10.96.3.4"]
    assert addresses(service, [SLICE], "w-0") is None


def test_only_names_of_the_cluster_are_taken_apart() -> None:
    assert split("s.n.svc.cluster.local") == ("", "s", "n")
    assert split("h.s.n.svc.cluster.local") == ("h", "s", "n")
    assert split("example.com") is None
    assert split("a.b.c.d.svc.cluster.local") is None


def test_an_answer_carries_the_question_and_every_address() -> None:
    reply = answer(query("a.b"), lambda name: ["10.0.0.1", "10.0.0.2"] if name == "a.b" else None)
    assert reply is not None
    identity, flags, questions, answers, _, _ = struct.unpack_from("!6H", reply)
    assert (identity, flags & 0x800F, questions, answers) == (7, 0x8000, 1, 2)
    assert reply.endswith(socket.inet_aton("10.0.0.2"))


def test_unknown_names_do_not_exist_and_other_types_are_empty() -> None:
    unknown = answer(query("x.y"), lambda _: None)
    other = answer(query("a.b", kind=28), lambda _: ["10.0.0.1"])
    assert unknown is not None
    assert other is not None
    assert unknown[3] & 0xF == 3
    assert (other[3] & 0xF, struct.unpack_from("!H", other, 6)[0]) == (0, 0)


@given(st.binary(max_size=80))
def test_no_datagram_breaks_the_server(data: bytes) -> None:
    reply = answer(data, lambda _: ["10.0.0.1"])
    assert reply is None or reply[:2] == data[:2]


def test_a_port_is_found_by_its_name() -> None:
    assert port_number(SLICE, {"name": "grpc", "port": 80}) == 9000
    assert port_number(SLICE, {"name": "other", "port": 80}) == 0
