"""Choosing replicas, and what fits a message to them."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.attention.dispatch import (
    Assignment,
    Placement,
    choose_replicas,
    require_frames_fit,
)
from tests.unit.attention.dispatch_rig import replica
from understudy.errors import FailedPrecondition
from understudy.model.config import ModelConfig

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def usable(_shard: int, _address: str) -> bool:
    return True


def test_each_shard_goes_to_the_replica_that_prefers_it():
    placement = Placement(1, (replica("a", {0, 1, 2}, {2}), replica("b", {0, 1, 2}, {0, 1})))
    chosen = choose_replicas(placement, 0, range(3), usable)
    assert chosen == [Assignment("b", 0, 2), Assignment("a", 2, 1)]


def test_only_a_run_from_shard_zero_is_added_up_by_the_worker():
    placement = Placement(1, (replica("a", {0}), replica("b", {1, 2})))
    assert choose_replicas(placement, 0, range(3), usable) == [
        Assignment("a", 0, 1),
        Assignment("b", 1, 1),
        Assignment("b", 2, 1),
    ]


def test_a_shard_without_usable_replica_is_left_out():
    placement = Placement(1, (replica("a", {0}), replica("b", {1})))
    chosen = choose_replicas(placement, 0, range(3), lambda shard, address: address != "b")
    assert chosen == [Assignment("a", 0, 1)]
    assert choose_replicas(placement, 5, range(3), usable) == []


REPLICAS = st.lists(
    st.builds(
        replica,
        st.sampled_from("abcde"),
        st.sets(st.integers(0, 5)),
        st.sets(st.integers(0, 5)),
    ),
    max_size=5,
    unique_by=lambda one: one.address,
)


@UNHURRIED
@given(replicas=REPLICAS, shards=st.sets(st.integers(0, 5)))
def test_every_shard_that_somebody_holds_is_assigned_exactly_once(replicas, shards):
    chosen = choose_replicas(Placement(1, tuple(replicas)), 0, shards, usable)
    assigned = [shard for assignment in chosen for shard in assignment.shards]
    held = {shard for shard in shards if any(shard in one.shards for one in replicas)}
    assert sorted(assigned) == sorted(held)
    holders = {one.address: one.shards for one in replicas}
    for assignment in chosen:
        assert set(assignment.shards) <= holders[assignment.address]
        assert assignment.first_shard == 0 or assignment.num_shards == 1


def test_a_token_budget_that_no_message_can_carry_is_refused_with_the_most_that_fits():
    config = ModelConfig(
        family="llama", vocab_size=8, hidden_size=4096, num_layers=1, num_heads=32,
        num_kv_heads=8, head_dim=128, ffn_size=64,
    )  # fmt: skip
    require_frames_fit(config, 512)
    with pytest.raises(FailedPrecondition, match=r"budget of 1024 .* at most 1023\."):
        require_frames_fit(config, 1024)
