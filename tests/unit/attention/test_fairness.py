"""Virtual token counters: the least served is next, and idleness earns nothing."""

from hypothesis import given
from hypothesis import strategies as st

from services.attention.fairness import TenantCounters


def test_newcomer_starts_at_the_least_counter_of_those_present():
    counters = TenantCounters()
    counters.arrive("old")
    counters.charge("old", 500)
    counters.arrive("other")
    counters.charge("other", 40)
    counters.arrive("new")
    assert counters.served("new") == 500
    assert counters.served("other") == 540


def test_idle_tenant_banks_no_credit():
    counters = TenantCounters()
    counters.arrive("busy")
    counters.arrive("idle")
    counters.leave("idle")
    counters.charge("busy", 1000)
    counters.arrive("idle")
    assert counters.served("idle") == counters.served("busy") == 1000


def test_idle_tenant_keeps_its_debt():
    counters = TenantCounters()
    counters.arrive("greedy")
    counters.arrive("modest")
    counters.charge("greedy", 300)
    counters.charge("modest", 10)
    counters.leave("greedy")
    counters.arrive("greedy")
    assert counters.served("greedy") == 300


def test_level_of_the_last_one_present_outlives_an_empty_worker():
    counters = TenantCounters()
    counters.arrive("first")
    counters.charge("first", 70)
    counters.leave("first")
    counters.arrive("second")
    assert counters.served("second") == 70


def test_tenant_is_present_until_its_last_sequence_ends():
    counters = TenantCounters()
    counters.arrive("acme")
    counters.arrive("acme")
    counters.leave("acme")
    assert counters.num_present == 1
    counters.leave("acme")
    assert counters.num_present == 0


def test_absent_tenants_are_remembered_up_to_a_bound():
    counters = TenantCounters(max_absent=1)
    for tenant in ("a", "b", "present"):
        counters.arrive(tenant)
    for tenant in ("a", "b"):
        counters.charge(tenant, 9)
        counters.leave(tenant)
    counters.arrive("a")
    counters.arrive("b")
    assert (counters.served("a"), counters.served("b")) == (0, 9)


@given(costs=st.lists(st.integers(1, 50), min_size=2, max_size=200))
def test_two_tenants_that_always_want_more_stay_within_one_service_of_each_other(costs: list[int]):
    counters = TenantCounters()
    counters.arrive("a")
    counters.arrive("b")
    for cost in costs:
        counters.charge(min("ab", key=counters.served), cost)
        assert abs(counters.served("a") - counters.served("b")) <= max(costs)
