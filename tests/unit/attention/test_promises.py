"""Promises of prefixes: kept, withdrawn, and never left behind."""

from services.attention.promises import Promises
from services.attention.sequence import Sequence
from tests.unit.attention.parts import submission


def sequence(sequence_id: int) -> Sequence:
    return Sequence(submission(sequence_id), sequence_id)


def test_first_maker_stays_the_one_waited_for():
    promises, first, second = Promises(), sequence(1), sequence(2)
    promises.make(first, [b"a", b"b"])
    promises.make(second, [b"b", b"c"])
    assert promises.maker(b"b") is first
    assert promises.maker(b"c") is second
    assert promises.maker(b"d") is None


def test_kept_promise_is_forgotten_whoever_kept_it():
    promises, first = Promises(), sequence(1)
    promises.make(first, [b"a", b"b"])
    promises.keep(b"a")
    promises.keep(b"never made")
    assert promises.maker(b"a") is None
    assert promises.maker(b"b") is first
    promises.keep(b"b")
    assert len(promises) == 0


def test_withdrawn_promises_leave_those_of_others():
    promises, first, second = Promises(), sequence(1), sequence(2)
    promises.make(first, [b"a"])
    promises.make(second, [b"b"])
    promises.withdraw(first)
    promises.withdraw(first)
    assert promises.maker(b"a") is None
    assert promises.maker(b"b") is second
