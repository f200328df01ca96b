"""Leader election: one leads, a silent one is replaced, a leader that cannot renew stops."""

import asyncio

from services.controller.leading import DEADLINE_S, DURATION_S, Leadership
from tests.unit.controller.fake_cluster import Clock, FakeCluster


def pair():
    cluster, clock = FakeCluster(), Clock()
    return (
        cluster,
        clock,
        Leadership(cluster, "lease", "a", clock),
        Leadership(cluster, "lease", "b", clock),
    )


async def test_the_first_leads_and_the_second_waits():
    _, clock, first, second = pair()
    await first.campaign()
    await second.campaign()
    assert first.is_leading
    assert not second.is_leading
    for _ in range(10):
        clock.now_s += 5
        await first.campaign()
        await second.campaign()
    assert first.is_leading
    assert not second.is_leading


async def test_a_silent_leader_stops_before_another_takes_over():
    cluster, clock, first, second = pair()
    await first.campaign()
    await second.campaign()
    clock.now_s += DEADLINE_S
    await second.campaign()
    assert not first.is_leading
    assert not second.is_leading
    clock.now_s += DURATION_S - DEADLINE_S
    await second.campaign()
    assert second.is_leading
    assert cluster.leases["lease"].holder == "b"
    assert cluster.leases["lease"].transitions == 1
    await first.campaign()
    assert not first.is_leading


async def test_a_leader_without_api_server_steps_down():
    cluster, clock, first, _ = pair()
    await first.campaign()
    cluster.is_away = True
    clock.now_s += DEADLINE_S - 1
    await first.campaign()
    assert first.is_leading
    clock.now_s += 1
    await first.campaign()
    assert not first.is_leading


async def test_two_that_take_a_free_lease_at_once_do_not_both_lead():
    cluster, clock, first, second = pair()
    await first.campaign()
    clock.now_s += DURATION_S
    third = Leadership(cluster, "lease", "c", clock)
    await second.campaign()
    await third.campaign()
    clock.now_s += DURATION_S
    await asyncio.gather(second.campaign(), third.campaign())
    assert [second.is_leading, third.is_leading].count(True) == 1


async def test_a_leader_that_ends_gives_the_lease_back():
    cluster, _, first, second = pair()
    running = asyncio.ensure_future(first.run())
    for _ in range(10):
        await asyncio.sleep(0)
    assert first.is_leading
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert cluster.leases["lease"].holder == ""
    await second.campaign()
    assert second.is_leading
    assert not first.is_leading
