import pytest
import torch

from tests.unit.model.conftest import Tiny, assert_near
from understudy.errors import NotFound
from understudy.model.config import ModelConfig
from understudy.model.ffn import (
    FfnShards,
    Gates,
    LocalExperts,
    expert_partial,
    expert_range,
    expert_weights,
    ffn_shard,
    sum_partials,
)


def test_experts_are_added_in_ascending_id_with_their_weights(mixture: Tiny) -> None:
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    gates = Gates(torch.tensor([[3, 0], [1, 0], [2, 3]]), torch.tensor([[0.7, 0.3]] * 3))
    experts = {e: expert_weights(mixture.weights, 0, e) for e in (3, 1, 0)}

    actual = expert_partial(experts, hidden, gates)

    first = 0.3 * ffn_shard(experts[0], hidden[:1]) + 0.7 * ffn_shard(experts[3], hidden[:1])
    third = 0.3 * ffn_shard(experts[3], hidden[2:])
    assert_near(actual[:1], first)
    assert_near(actual[2:], third)


def test_tokens_without_a_held_expert_contribute_nothing(mixture: Tiny) -> None:
    gates = Gates(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]))
    experts = {2: expert_weights(mixture.weights, 0, 2)}

    assert expert_partial(experts, torch.ones(1, 32), gates).eq(0).all()


def test_expert_ranges_of_the_shards_cover_every_expert_once(mixture_config: ModelConfig) -> None:
    ids = [e for shard in range(2) for e in expert_range(mixture_config, shard)]

    assert ids == list(range(4))


def test_shard_that_is_not_held_is_refused(dense: Tiny, mixture: Tiny) -> None:
    hidden = torch.ones(1, 32)
    gates = Gates(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]))
    held = FfnShards(dense.config, dense.weights, layers=[0], shards=[1])

    assert held.partial(0, 1, hidden, None).shape == (1, 32)
    for layer, shard in ((0, 0), (1, 1)):
        with pytest.raises(NotFound, match=f"layer {layer}, shard {shard}"):
            held.partial(layer, shard, hidden, None)
    with pytest.raises(NotFound, match="No mixture feed-forward"):
        held.partial(0, 1, hidden, gates)
    with pytest.raises(NotFound, match="No dense feed-forward"):
        FfnShards(mixture.config, mixture.weights).partial(0, 0, hidden, None)


def test_local_experts_sum_the_shards_in_canonical_order(dense: Tiny) -> None:
    hidden = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    shards = FfnShards(dense.config, dense.weights)

    whole = LocalExperts(dense.config, dense.weights).submit(1, hidden, None).wait()

    assert torch.equal(whole, sum_partials([shards.partial(1, s, hidden, None) for s in (0, 1)]))
