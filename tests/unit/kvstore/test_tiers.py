"""Host memory, breaker, admission and settings."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.kvstore.admission import Admission
from services.kvstore.breaker import CircuitBreaker
from services.kvstore.memory import HostMemory
from services.kvstore.settings import KvStoreSettings
from understudy.serving import SettingsError

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@UNHURRIED
@given(
    operations=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.one_of(st.none(), st.integers(0, 12)))
    )
)
def test_host_memory_agrees_with_a_list_of_recently_used(operations):
    memory, model = HostMemory(10), []
    for key, size in operations:
        found = [data for known, data in model if known == key]
        if size is None:
            assert memory.get(key) == (found[0] if found else None)
            model = [(k, d) for k, d in model if k != key] + [(key, data) for data in found]
        elif size <= 10:
            memory.put(key, b"x" * size)
            model = [(k, d) for k, d in model if k != key] + [(key, b"x" * size)]
            while sum(len(data) for _, data in model) > 10:
                model.pop(0)
        assert memory.size_bytes == sum(len(data) for _, data in model)
        assert len(memory) == len(model)
        assert all(known in memory for known, _ in model)


def test_a_chunk_larger_than_the_cap_displaces_nothing():
    memory = HostMemory(10)
    memory.put("a", b"x" * 10)
    assert memory.put("b", b"x" * 11) == 0
    assert "a" in memory
    assert "b" not in memory


class _Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_trial_through():
    clock = _Clock()
    breaker = CircuitBreaker(2, 5.0, clock)
    breaker.note_failure()
    breaker.note_success()
    breaker.note_failure()
    assert breaker.allows()
    breaker.note_failure()
    assert breaker.is_open
    assert not breaker.allows()
    clock.now_s = 5.0
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.note_failure()
    clock.now_s = 9.9
    assert not breaker.allows()
    clock.now_s = 10.0
    assert breaker.allows()
    breaker.note_success()
    assert [breaker.allows(), breaker.allows(), breaker.is_open] == [True, True, False]


def test_admission_waits_for_the_touch_it_was_told():
    assert Admission(1).admits("a")
    admission = Admission(2, max_remembered=2)
    assert [admission.admits("a"), admission.admits("a")] == [False, True]
    assert [admission.admits(key) for key in "bca"] == [False, False, False]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEMORY_MIB", "0"),
        ("REDIS_TIMEOUT_S", "nan"),
        ("REDIS_URL", "http://host"),
        ("BREAKER_FAILURES", "0"),
        ("NONSENSE", "1"),
    ],
)
def test_a_bad_setting_is_refused_by_name(name: str, value: str):
    with pytest.raises(SettingsError, match=name):
        KvStoreSettings.from_env({f"UNDERSTUDY_KVSTORE_{name}": value})


def test_every_setting_has_a_default():
    assert KvStoreSettings.from_env({}) == KvStoreSettings()
