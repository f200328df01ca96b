"""Experts stacked while they load, and computed in one call or one by one."""

from pathlib import Path

import pytest
import torch

from tests.unit.model.configs import QWEN3_MOE
from tests.unit.model.conftest import assert_near
from understudy.model.ffn import Apart, FfnShards, Gates, expert_partial, expert_weights
from understudy.model.packed import Packed
from understudy.model.packed_experts import ExpertStacks, Together, together
from understudy.model.safetensors_io import save_model
from understudy.model.weights import LoadedModel, load_model, random_weights
from understudy_kernels import load

NAME = "model.layers.1.mlp.experts.{}.{}_proj.weight"
HIDDEN = torch.randn(6, 32, generator=torch.Generator().manual_seed(3))
GATES = Gates(
    torch.tensor([[0, 5, 2], [7, 6, 5], [1, 3, 2], [4, 0, 7], [0, 1, 2], [3, 2, 1]]),
    torch.rand(6, 3, generator=torch.Generator().manual_seed(4)),
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    load()
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, QWEN3_MOE, random_weights(QWEN3_MOE, seed=7, deviation=0.3))
    return load_model(directory, "int4", "exact")


def _packed(loaded: LoadedModel, expert: int, part: str) -> Packed:
    matrix = loaded.packed[NAME.format(expert, part)]
    assert isinstance(matrix, Packed)
    return matrix


def test_experts_of_a_shard_lie_behind_one_another_and_those_of_another_apart(
    loaded: LoadedModel,
) -> None:
    data = [_packed(loaded, expert, "up").weight.data for expert in range(8)]
    size = data[0].numel()

    assert QWEN3_MOE.num_ffn_shards == 2
    for start in (0, 4):
        places = [row.data_ptr() - data[start].data_ptr() for row in data[start : start + 4]]
        assert places == [0, size, 2 * size, 3 * size]
    assert data[0].untyped_storage().data_ptr() != data[4].untyped_storage().data_ptr()
    assert data[0].untyped_storage().nbytes() == 4 * size


def test_a_shard_is_computed_from_where_its_experts_lie(loaded: LoadedModel) -> None:
    mixture = together({id_: expert_weights(loaded.stored, 1, id_) for id_ in range(4, 8)})

    assert isinstance(mixture, Together)
    assert mixture.first_expert == 4
    assert mixture.experts.down.data_ptr() == _packed(loaded, 4, "down").weight.data.data_ptr()


@pytest.mark.parametrize("shard", [0, 1])
def test_one_call_gives_what_experts_one_by_one_give(loaded: LoadedModel, shard: int) -> None:
    experts = {
        id_: expert_weights(loaded.stored, 1, id_) for id_ in range(4 * shard, 4 * shard + 4)
    }

    found = FfnShards(loaded.config, loaded.stored).partial(1, shard, HIDDEN, GATES)

    assert torch.equal(found, expert_partial(experts, HIDDEN, GATES))


def test_experts_of_several_formats_are_computed_one_by_one(tmp_path: Path) -> None:
    load()
    weights = random_weights(QWEN3_MOE, seed=7, deviation=0.3)
    odd = NAME.format(2, "gate")
    weights[odd] = weights[odd].bfloat16()
    save_model(tmp_path, QWEN3_MOE, weights)
    mixed = load_model(tmp_path, "float32", "exact")
    same = load_model(tmp_path, "float32", "reference")

    assert together({id_: expert_weights(mixed.stored, 1, id_) for id_ in range(4)}) is None
    found = FfnShards(mixed.config, mixed.stored).partial(1, 0, HIDDEN, GATES)
    wanted = FfnShards(same.config, same.stored).partial(1, 0, HIDDEN, GATES)
    assert_near(found, wanted, tolerance=1e-4)


def test_plain_experts_are_computed_one_by_one() -> None:
    weights = random_weights(QWEN3_MOE, seed=7)
    experts = {id_: expert_weights(weights, 0, id_) for id_ in range(2)}

    assert together(experts) is None
    assert torch.equal(
        Apart(experts).partial(HIDDEN, GATES), expert_partial(experts, HIDDEN, GATES)
    )


def test_names_that_are_no_expert_of_the_model_are_left_where_they_are(loaded: LoadedModel) -> None:
    stacks, matrix = ExpertStacks(QWEN3_MOE), _packed(loaded, 0, "up")

    for name in (NAME.format(8, "up"), "model.layers.0.mlp.gate.weight", "lm_head.weight"):
        assert stacks.placed(name, matrix) is matrix
    assert stacks.placed(NAME.format(1, "up"), matrix) is not matrix
