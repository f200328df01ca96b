import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from understudy.errors import Internal, InvalidArgument
from understudy.model.sampling import Sampled, SamplingParams, sample, uniform, unpack_mask

# Correctness, not speed: a busy machine must not fail these.
UNHURRIED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
GREEDY = SamplingParams()
WARM = SamplingParams(temperature=1.0)
PINNED = ["0.652448486374", "0.368189515652", "0.701212109522", "0.723858274590"]
params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.05, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1.0),
)


def _logits(seed: int, rows: int = 1, size: int = 40) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 3


def _packed(allowed: Sequence[int], words: int) -> Tensor:
    mask = np.zeros(words, np.uint32)
    for token in allowed:
        mask[token // 32] |= np.uint32(1 << (token % 32))
    return torch.from_numpy(mask.view(np.int32)[None])


def _draws(logits: Tensor, params: SamplingParams, count: int) -> Counter[int]:
    rows = logits.expand(count, -1)
    drawn = sample(rows, [params] * count, [5] * count, range(count))
    return Counter(drawn.tokens.tolist())


@UNHURRIED
@given(st.integers(), st.integers(0, 1 << 40))
def test_uniform_lies_in_the_unit_interval_and_repeats(seed: int, position: int) -> None:
    assert 0.0 <= uniform(seed, position) < 1.0
    assert uniform(seed, position) == uniform(seed, position)


def test_uniform_is_pinned_so_that_every_version_draws_alike() -> None:
    assert [f"{uniform(*pair):.12f}" for pair in ((0, 0), (1, 0), (0, 1), (-1, 7))] == PINNED


def test_uniform_fills_the_interval_evenly_over_positions_and_seeds() -> None:
    for draws in (
        [uniform(3, position) for position in range(4000)],
        [uniform(seed, 3) for seed in range(4000)],
    ):
        counts = np.histogram(draws, bins=10, range=(0, 1))[0]
        # Chi-square with 9 degrees of freedom: 27.9 is passed once in a thousand.
        assert ((counts - 400) ** 2 / 400).sum() < 27.9


def test_neighbouring_seeds_do_not_shift_into_each_other() -> None:
    draws = {uniform(seed, position) for seed in range(50) for position in range(50)}

    assert len(draws) == 2500


def test_greedy_takes_the_best_and_the_lowest_id_of_equals() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]])

    assert sample(logits, [GREEDY], [0], [0]).tokens.tolist() == [1]


@UNHURRIED
@given(st.integers(0, 1000), params_strategy, st.integers(0, 1 << 62), st.integers(0, 8192))
def test_a_row_draws_the_same_alone_and_in_any_batch(
    logits_seed: int, params: SamplingParams, seed: int, position: int
) -> None:
    logits = _logits(logits_seed, rows=5)
    mask = torch.full((5, 2), -1, dtype=torch.int32)
    others = [WARM, GREEDY, params, SamplingParams(0.3, 2, 0.5), WARM]

    batch = sample(logits, others, [9, 8, seed, 7, 6], [1, 2, position, 3, 4], mask)
    alone = sample(logits[2:3], [params], [seed], [position], mask[2:3])

    for field in ("tokens", "logprobs", "margins", "mask_losses"):
        assert torch.equal(getattr(batch, field)[2:3], getattr(alone, field))


@UNHURRIED
@given(st.integers(0, 1000), params_strategy, st.sets(st.integers(0, 39), min_size=1))
def test_a_masked_draw_is_allowed_and_among_the_kept_tokens(
    logits_seed: int, params: SamplingParams, allowed: set[int]
) -> None:
    logits = _logits(logits_seed)
    drawn = sample(logits, [params], [11], [logits_seed], _packed(sorted(allowed), 2))

    token = int(drawn.tokens[0])
    assert token in allowed
    best_first = sorted(allowed, key=lambda t: (-float(logits[0, t]), t))
    if params.temperature == 0:
        assert token == best_first[0]
    elif params.top_k:
        assert token in best_first[: params.top_k]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]])

    counts = _draws(logits, WARM, 2000)

    assert all(
        abs(counts[token] / 2000 - p) < 0.035 for token, p in enumerate((0.5, 0.3, 0.15, 0.05))
    )


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([[math.log(p) for p in (0.15, 0.5, 0.05, 0.3)]])

    counts = _draws(logits, SamplingParams(temperature=1.0, top_p=0.75), 1000)

    assert set(counts) == {1, 3}
    assert abs(counts[1] / 1000 - 0.5 / 0.8) < 0.05


def test_top_k_keeps_the_best_k_and_the_lower_ids_of_equals() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, 0.0]])

    assert set(_draws(logits, SamplingParams(temperature=1.0, top_k=2), 300)) == {0, 1}


def test_a_tiny_temperature_is_greedy() -> None:
    assert set(_draws(_logits(1), SamplingParams(temperature=1e-30), 50)) == {
        int(_logits(1).argmax())
    }


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]])

    assert set(_draws(logits, WARM, 500)) == {0, 2}


def test_evidence_is_hand_computed() -> None:
    probabilities = (0.5, 0.3, 0.15, 0.05)
    logits = torch.tensor([[math.log(p) for p in probabilities]])

    free = sample(logits, [GREEDY], [0], [0])
    masked = sample(logits, [GREEDY], [0], [0], _packed([1, 2], 1))
    forced = sample(logits, [GREEDY], [0], [0], _packed([3], 1))

    _assert_evidence(free, token=0, logprob=math.log(0.5), margin=0.2, mask_loss=0.0)
    # Among the allowed, 0.3 and 0.15 become 2/3 and 1/3; the log-probability stays the model's.
    _assert_evidence(masked, token=1, logprob=math.log(0.3), margin=1 / 3, mask_loss=0.55)
    _assert_evidence(forced, token=3, logprob=math.log(0.05), margin=1.0, mask_loss=0.95)


def _assert_evidence(
    actual: Sampled, *, token: int, logprob: float, margin: float, mask_loss: float
) -> None:
    assert actual.tokens.tolist() == [token]
    assert actual.logprobs.item() == pytest.approx(logprob, abs=1e-6)
    assert actual.margins.item() == pytest.approx(margin, abs=1e-6)
    assert actual.mask_losses.item() == pytest.approx(mask_loss, abs=1e-6)


def test_mask_bits_map_to_ids_and_missing_words_forbid() -> None:
    allowed = unpack_mask(_packed([0, 31, 32, 63], 2), 80)

    assert allowed[0].nonzero().flatten().tolist() == [0, 31, 32, 63]


def test_a_vocabulary_of_one_token_has_no_rival() -> None:
    assert sample(torch.zeros(1, 1), [GREEDY], [0], [0]).margins.item() == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
    ],
)
def test_params_out_of_range_are_refused_naming_the_field(field: str, value: float) -> None:
    with pytest.raises(InvalidArgument, match=field) as raised:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert raised.value.metadata["field"] == field


def test_logits_that_are_not_numbers_are_a_bug() -> None:
    with pytest.raises(Internal, match="not numbers"):
        sample(torch.tensor([[0.0, math.nan]]), [GREEDY], [0], [0])


def test_a_mask_that_allows_nothing_is_a_bug() -> None:
    with pytest.raises(Internal, match="no token at all"):
        sample(torch.zeros(1, 4), [GREEDY], [0], [0], torch.zeros(1, 1, dtype=torch.int32))


def test_rows_and_params_must_be_as_many() -> None:
    with pytest.raises(Internal, match="2 rows of logits"):
        sample(torch.zeros(2, 4), [GREEDY], [0], [0])
