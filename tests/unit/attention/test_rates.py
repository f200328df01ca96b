"""Measured rates decide whether a fetch beats recomputing; a breaker rests a failing store."""

from services.attention.rates import Breaker, Rate, is_fetch_faster, is_swap_faster, read_limit_s


def test_rate_starts_with_the_first_measurement_and_then_smooths():
    rate = Rate()
    rate.note(0, 1.0, 0.0)
    rate.note(10, 0.0, 0.0)
    assert rate.per_s(0.0) is None
    rate.note(10, 1.0, 0.0)
    assert rate.per_s(1e9) == 10.0
    rate.note(20, 1.0, 0.0)
    assert rate.per_s(0.0) == 12.0


def test_rate_that_was_not_measured_for_a_while_is_forgotten():
    rate = Rate(max_age_s=30.0)
    rate.note(10, 1.0, 100.0)
    assert rate.per_s(130.0) == 10.0
    assert rate.per_s(130.1) is None
    rate.note(1000, 1.0, 140.0)
    assert rate.per_s(140.0) == 1000.0


def faster(prefill: float | None, fetch: float | None, round_trip_s: float = 0.0) -> bool:
    return is_fetch_faster(
        100,
        1_000,
        prefill_tokens_per_s=prefill,
        fetch_bytes_per_s=fetch,
        round_trip_s=round_trip_s,
    )


def test_unmeasured_rates_let_the_fetch_be_tried():
    assert faster(None, 1.0)
    assert faster(100.0, None)


def test_fetch_must_beat_recomputing_with_headroom():
    assert faster(100.0, 2_000.0)  # 0.5 s against 1 s
    assert not faster(100.0, 1_100.0)  # 0.91 s against 1 s
    assert not faster(100.0, 2_000.0, round_trip_s=0.5)


def test_swap_pays_for_the_write_too():
    rates = {"prefill_tokens_per_s": 100.0, "fetch_bytes_per_s": 4_000.0, "round_trip_s": 0.0}
    assert is_swap_faster(100, 1_000, write_bytes_per_s=4_000.0, **rates)  # 0.5 s against 1 s
    assert not is_swap_faster(100, 1_000, write_bytes_per_s=1_500.0, **rates)  # 0.92 s
    assert is_swap_faster(100, 1_000, write_bytes_per_s=None, **rates)


def test_read_is_cut_when_it_is_late_or_computing_would_have_been_quicker():
    def limit_s(prefill: float | None, fetch: float | None) -> float | None:
        return read_limit_s(100, 1_000, prefill_tokens_per_s=prefill, fetch_bytes_per_s=fetch)

    assert limit_s(None, None) is None
    assert limit_s(100.0, None) == 1.0
    assert limit_s(None, 500.0) == 4.0
    assert limit_s(10.0, 500.0) == 4.0
    assert limit_s(100.0, 500.0) == 1.0


def test_breaker_rests_after_failures_in_a_row_only():
    breaker = Breaker(max_failures=2, rest_s=5.0)
    breaker.note_failure(0.0)
    breaker.note_success()
    breaker.note_failure(1.0)
    assert breaker.allows(1.0)
    breaker.note_failure(2.0)
    assert not breaker.allows(6.9)
    assert breaker.allows(7.0)
