"""Every kind of model over the `Experts` seam: what is sent, what stays, and that sums agree."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from tests.unit.model.configs import ALL, FINE, LONGCAT
from tests.unit.model.conftest import Tiny, assert_near
from understudy.model.attention import PackedCausal
from understudy.model.config import ModelConfig
from understudy.model.ffn import FfnShards, Gates, LocalExperts, PendingHidden, is_placed
from understudy.model.ffn import sum_partials as add
from understudy.model.transformer import Transformer
from understudy.model.weights import random_weights

TOKENS = torch.arange(11) * 7 % 97


def _tiny(config: ModelConfig) -> Tiny:
    return Tiny(config, random_weights(config, seed=7, deviation=0.3))


def _forward(model: Transformer, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        positions = torch.arange(len(tokens))
        return model.forward(tokens, positions, PackedCausal([len(tokens)]))


@dataclass(frozen=True)
class _Sent:
    layer: int
    hidden: Tensor
    gates: Gates | None


@dataclass
class _Recorder:
    """Each shard on a worker of its own; remembers what was submitted."""

    tiny: Tiny
    sent: list[_Sent] = field(default_factory=list)

    def __post_init__(self) -> None:
        config, weights = self.tiny.config, self.tiny.weights
        placed = {name: weight for name, weight in weights.items() if is_placed(name)}
        shards = range(config.num_ffn_shards)
        self._workers = [FfnShards(config, placed, shards=[shard]) for shard in shards]

    def submit(self, layer: int, hidden: Tensor, gates: Gates | None) -> PendingHidden:
        self.sent.append(_Sent(layer, hidden, gates))
        partials = [
            worker.partial(layer, shard, hidden.clone(), gates)
            for shard, worker in enumerate(self._workers)
        ]

        class Pending:
            def wait(self) -> Tensor:
                return add(partials)

        return Pending()


@pytest.mark.parametrize("name", ALL)
def test_shards_on_workers_of_their_own_equal_fused_bit_for_bit(name: str) -> None:
    tiny = _tiny(ALL[name])
    kept = {n: w for n, w in tiny.weights.items() if not is_placed(n)}

    apart = Transformer(tiny.config, kept, _Recorder(tiny))

    fused = Transformer(tiny.config, tiny.weights)
    assert torch.equal(_forward(apart, TOKENS), _forward(fused, TOKENS))


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_weight(name: str) -> None:
    config = replace(ALL[name], num_ffn_shards=1)
    weights = {n: w.requires_grad_() for n, w in _tiny(config).weights.items()}
    model, tokens = Transformer(config, weights), torch.arange(97).repeat(2)

    hidden = model.forward(tokens, torch.arange(97).repeat(2), PackedCausal([97, 97]))
    torch.nn.functional.cross_entropy(model.logits(hidden), tokens.roll(-1)).backward()

    # The bias that balances the choice of experts is no parameter of the loss.
    without = [n for n, w in weights.items() if w.grad is None or not w.grad.any()]
    assert all(n.endswith("e_score_correction_bias") for n in without)


def test_every_feed_forward_is_submitted_once_with_its_kind() -> None:
    recorder = _Recorder(_tiny(FINE))
    _forward(Transformer(FINE, recorder.tiny.weights, recorder), TOKENS)

    assert [sent.layer for sent in recorder.sent] == [0, 1, 2]
    assert [sent.gates is None for sent in recorder.sent] == [True, False, False]


def _longcat(bias: Tensor) -> Tiny:
    """Return LongCat whose every choice is what `bias` prefers."""
    weights = random_weights(LONGCAT, seed=7, deviation=0.3)
    for layer in range(LONGCAT.num_layers):
        weights[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"] = bias
    return Tiny(LONGCAT, weights)


def test_gates_to_experts_of_zero_computation_are_never_sent() -> None:
    recorder = _Recorder(_longcat(torch.zeros(9)))
    _forward(Transformer(LONGCAT, recorder.tiny.weights, recorder), torch.arange(97))

    assert len(recorder.sent) == LONGCAT.num_layers
    for sent in recorder.sent:
        assert sent.gates is not None
        assert sent.gates.ids.max() < LONGCAT.num_experts
        assert (sent.gates.weights != 0).any(dim=1).all()
        assert (sent.gates.weights == 0).any()


def test_a_token_with_only_zero_computation_experts_stays_here() -> None:
    config = replace(LONGCAT, num_experts_per_token=3)
    tiny = _longcat(torch.tensor([0.0] * 6 + [9.0] * 3))
    recorder = _Recorder(Tiny(config, tiny.weights))

    alone = _forward(Transformer(config, tiny.weights, recorder), TOKENS)

    assert recorder.sent == []
    assert torch.equal(alone, _forward(Transformer(config, tiny.weights), TOKENS))


@pytest.mark.parametrize("config", [FINE, LONGCAT], ids=["deepseek", "longcat"])
def test_a_single_token_leaves_most_experts_empty(config: ModelConfig) -> None:
    tiny = _tiny(config)
    model = Transformer(config, tiny.weights)

    together = _forward(model, TOKENS)

    assert_near(_forward(model, TOKENS[:1]), together[:1])


def test_experts_that_no_token_chose_add_zero() -> None:
    tiny = _tiny(FINE)
    gates = Gates(torch.tensor([[0, 1, 2]]), torch.tensor([[0.5, 0.0, 0.5]]))
    hidden = torch.ones(1, 32)
    shards = FfnShards(FINE, tiny.weights, layers=[1])

    assert shards.partial(1, 1, hidden, gates).eq(0).all()
    nothing = Gates(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3))
    empty = LocalExperts(FINE, tiny.weights).submit(1, torch.zeros(0, 32), nothing).wait()
    assert empty.shape == (0, 32)
