"""Victims: the least urgent first, then the most served, then the youngest; nobody for ever."""

from services.attention.preemption import (
    MAX_PREEMPTIONS,
    Standing,
    choose_victim,
    victims_for_admission,
)
from services.attention.sequence import Priority

NEEDY = Standing(Priority.STANDARD, served=10, num_preemptions=0, arrival=5)


def standing(priority: Priority = Priority.STANDARD, **fields: int) -> Standing:
    return Standing(priority, **{"served": 10, "num_preemptions": 0, "arrival": 1, **fields})


def test_least_urgent_gives_way_first():
    batch = standing(Priority.BATCH, served=0)
    assert choose_victim(NEEDY, [NEEDY, standing(served=99), batch]) is batch


def test_most_served_tenant_gives_way_within_a_class_then_the_youngest():
    greedy = standing(served=50)
    assert choose_victim(NEEDY, [NEEDY, greedy, standing(arrival=9)]) is greedy
    youngest = standing(arrival=9)
    assert choose_victim(NEEDY, [NEEDY, youngest, standing(arrival=2)]) is youngest


def test_nobody_more_urgent_gives_way():
    assert choose_victim(NEEDY, [NEEDY, standing(Priority.INTERACTIVE, served=99)]) is NEEDY


def test_who_gave_way_often_is_spared_while_anybody_else_can_go():
    spared = standing(Priority.BATCH, num_preemptions=MAX_PREEMPTIONS)
    assert choose_victim(NEEDY, [NEEDY, spared]) is NEEDY
    tired = Standing(Priority.STANDARD, 10, MAX_PREEMPTIONS, 5)
    assert choose_victim(tired, [tired, spared]) is spared


def test_admission_takes_only_from_the_less_urgent_and_not_from_the_spared():
    batch, greedy = standing(Priority.BATCH), standing(Priority.BATCH, served=11)
    spared = standing(Priority.BATCH, num_preemptions=MAX_PREEMPTIONS)
    running = [standing(), batch, spared, greedy]
    assert victims_for_admission(Priority.STANDARD, running) == [greedy, batch]
    assert victims_for_admission(Priority.BATCH, running) == []
