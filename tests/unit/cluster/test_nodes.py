"""Nodes, their addresses, the volumes they offer and the logs they serve."""

from pathlib import Path

import pytest

from deploy.cluster.agent.claims import volume_for
from deploy.cluster.agent.logs import newest, tail
from deploy.cluster.agent.nodes import Addresses, is_ready, node_object, node_status, read_nodes
from deploy.cluster.layout import NODES


def test_gpus_are_offered_on_tainted_nodes_only() -> None:
    for node in read_nodes(NODES):
        has_gpus = "nvidia.com/gpu" in node_status(node)["allocatable"]
        assert bool(node_object(node)["spec"]["taints"]) is has_gpus


def test_nodes_have_addresses_of_their_own() -> None:
    found = read_nodes(NODES)
    taken = {node.address for node in found} | {Addresses(node).take() for node in found}
    assert len(taken) == 2 * len(found)


def test_an_address_rests_before_it_is_given_again() -> None:
    addresses = Addresses(read_nodes(NODES)[0])
    first = addresses.take()
    addresses.give_back(first)
    others = {addresses.take() for _ in range(249)}
    assert first not in others
    assert addresses.take() == first
    with pytest.raises(RuntimeError, match="all 250 addresses"):
        addresses.take()


def test_a_volume_is_bound_to_one_claim(tmp_path: Path) -> None:
    metadata = {"name": "c", "namespace": "n", "uid": "u"}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    volume = volume_for({"metadata": metadata, "spec": spec}, tmp_path)
    assert volume["spec"]["claimRef"]["uid"] == "u"
    assert volume["spec"]["capacity"] == {"storage": "1Gi"}


def test_the_newest_log_is_that_of_the_last_start(tmp_path: Path) -> None:
    assert newest(tmp_path, is_previous=False) is None
    for number in (0, 2, 10):
        (tmp_path / f"{number}.log").touch()
    last, before = newest(tmp_path, is_previous=False), newest(tmp_path, is_previous=True)
    assert (last, before) == (tmp_path / "10.log", tmp_path / "2.log")


def test_the_tail_is_whole_lines() -> None:
    assert tail(b"1\n2\n3\n", 2) == b"2\n3\n"
    assert tail(b"1\n", 5) == b"1\n"
    assert tail(b"1\n2\n", 0) == b""
    assert tail(b"1\n2\n", None) == b"1\n2\n"


def test_a_node_is_ready_only_where_it_says_so() -> None:
    assert is_ready({"status": node_status(read_nodes(NODES)[0])})
    assert not is_ready({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})
    assert not is_ready({})
