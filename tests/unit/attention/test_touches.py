"""Second-touch admission, and what the store is thought to have."""

from services.attention.touches import MAX_STORED_S, TouchFilter


def test_chunk_is_due_from_its_threshold_on_until_it_is_stored():
    touches = TouchFilter(threshold=2)
    assert not touches.touch(b"a")
    assert touches.touch(b"a")
    assert touches.touch(b"a")
    touches.mark_stored(b"a")
    assert not touches.touch(b"a")
    touches.mark_absent(b"a")
    assert touches.touch(b"a")


def test_chunk_that_came_from_the_store_is_not_due():
    touches = TouchFilter(threshold=1)
    touches.mark_stored(b"a")
    assert not touches.touch(b"a")
    assert touches.is_stored(b"a")
    assert not touches.is_stored(b"b")


def test_chunk_that_was_stored_long_ago_is_due_again():
    now_s = 0.0
    touches = TouchFilter(threshold=2, clock_s=lambda: now_s)
    touches.mark_stored(b"a")
    now_s = MAX_STORED_S
    assert not touches.is_stored(b"a")
    assert touches.touch(b"a")


def test_touches_are_bounded():
    touches = TouchFilter(threshold=2, max_touched=2)
    assert not touches.touch(b"a")
    assert not touches.touch(b"b")
    assert not touches.touch(b"c")
    assert not touches.touch(b"a")  # forgotten meanwhile
    assert touches.touch(b"c")
    for chain_hash in (b"x", b"y", b"z"):
        touches.mark_stored(chain_hash)
    assert not touches.is_stored(b"x")


def test_absence_of_an_unknown_chunk_is_not_remembered():
    touches = TouchFilter(threshold=1, max_touched=1)
    touches.mark_stored(b"a")
    touches.mark_absent(b"b")
    assert touches.is_stored(b"a")
