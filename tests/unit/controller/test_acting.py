"""What becomes of decisions: scales, marks, Events, metrics, log."""

import logging

import pytest
from prometheus_client import CollectorRegistry

from services.controller.acting import FIRST_TO_GO, Actor, emptiest
from services.controller.cluster import Scale, Workload, WorkloadKind
from services.controller.demand import Demand
from services.controller.gathering import PartSight, Sight
from services.controller.loop import ScalingLoop
from services.controller.metrics import ScalingMetrics
from services.controller.scaling.rules import PartRules, PoolRules, ScalingRules
from services.controller.scaling.signals import Part, PodCounts, PoolSignals, Signals
from tests.unit.controller.fake_cluster import Clock, FakeCluster, pod
from tests.unit.controller.pools import learnt, load, one, pods, rules
from understudy.errors import Unavailable

WORKLOAD = Workload(WorkloadKind.DEPLOYMENT, "llm")
KEY = ("llm", Part.ATTENTION)


class Rig:
    """An actor over a fake cluster."""

    def __init__(self, size: int, *, dry_run: bool = False, leads=lambda: True, workload=WORKLOAD):
        self.registry = CollectorRegistry()
        self.workload = workload
        self.cluster = FakeCluster(scales={workload: Scale(size, "a", "v")})
        self.metrics = ScalingMetrics.on(self.registry)
        self.actor = Actor(self.cluster, self.metrics, is_dry_run=dry_run, may_act=leads)
        self.workers = [pod(f"w{index}") for index in range(size)]
        self.in_flight = {worker.name: 9.0 - index for index, worker in enumerate(self.workers)}

    def parts(self):
        scale = self.cluster.scales[self.workload]
        return {KEY: PartSight(self.workload, scale, self.workers, self.in_flight)}

    def value(self, name: str, **labels: str):
        return self.registry.get_sample_value(name, {"pool": "llm", "part": "attention", **labels})


async def test_growth_changes_the_scale_and_writes_an_event_with_the_reason():
    rig = Rig(4)
    await rig.actor.apply(learnt(4, demand=3.9, chosen=rules()), rig.parts())
    assert rig.cluster.changes == [("llm", 7)]
    assert rig.cluster.marks == {}
    [note] = rig.cluster.notes
    assert note.reason == "ScaledUp"
    assert "4 -> 7 replicas, 7 needed: work for" in note.message
    assert rig.value("understudy_controller_scaling_changes_total", direction="up") == 1
    assert rig.value("understudy_controller_scaling_replicas", kind="decided") == 7


async def test_the_emptiest_workers_are_marked_before_the_scale_shrinks():
    rig = Rig(4)
    rig.workers[0] = pod("w0", deletion_cost=-100)
    await rig.actor.apply(learnt(4, demand=1.0, chosen=rules()), rig.parts())
    assert rig.cluster.changes == [("llm", 2)]
    assert rig.cluster.marks == {"w0": None, "w2": FIRST_TO_GO, "w3": FIRST_TO_GO}
    assert rig.cluster.notes[0].reason == "ScaledDown"


async def test_pods_of_a_stateful_set_which_leave_by_their_number_are_not_marked():
    rig = Rig(4, workload=Workload(WorkloadKind.STATEFUL_SET, "llm"))
    await rig.actor.apply(learnt(4, demand=1.0, chosen=rules()), rig.parts())
    assert rig.cluster.changes == [("llm", 2)]
    assert rig.cluster.marks == {}


def test_workers_that_do_not_serve_go_first_and_unread_ones_last():
    workers = [pod("busy"), pod("unread"), pod("idle"), pod("new", is_ready=False)]
    workers.append(pod("gone", is_terminating=True))
    order = emptiest(workers, {"busy": 5.0, "idle": 0.0}, 4)
    assert [one.name for one in order] == ["new", "idle", "busy", "unread"]


async def test_a_dry_run_changes_nothing_and_still_tells(caplog):
    rig = Rig(4, dry_run=True)
    with caplog.at_level(logging.INFO, "understudy.scaling"):
        await rig.actor.apply(learnt(4, demand=1.0, chosen=rules()), rig.parts())
    assert rig.cluster.changes == []
    assert rig.cluster.notes == []
    assert rig.cluster.marks == {}
    [record] = caplog.records
    assert (record.before, record.replicas, record.applied) == (4, 2, False)
    assert rig.value("understudy_controller_scaling_changes_total", direction="down") == 1


async def test_who_lost_the_lease_meanwhile_changes_nothing():
    rig = Rig(4, leads=lambda: False)
    await rig.actor.apply(learnt(4, demand=3.9, chosen=rules()), rig.parts())
    assert rig.cluster.changes == []


async def test_somebody_elses_change_is_not_overwritten(caplog):
    rig = Rig(4)
    rig.cluster.conflicts = 1
    with caplog.at_level(logging.INFO, "understudy.scaling"):
        await rig.actor.apply(learnt(4, demand=3.9, chosen=rules()), rig.parts())
    assert rig.cluster.changes == []
    assert rig.value("understudy_controller_scaling_failures_total") == 1
    assert "decides anew" in caplog.records[0].message


async def test_a_hold_is_told_once_and_an_everyday_one_without_event(caplog):
    rig = Rig(4)
    chosen = rules(max_gpus=4)
    with caplog.at_level(logging.INFO, "understudy.scaling"):
        for _ in range(3):
            await rig.actor.apply(learnt(4, demand=3.9, chosen=chosen), rig.parts())
    assert len(caplog.records) == 1
    assert any(text.startswith("budget: ") for text in caplog.records[0].holds)
    [note] = rig.cluster.notes
    assert note.reason == "ScalingHeld"
    assert "Held (budget)" in note.message
    quiet = Rig(4)
    await quiet.actor.apply(learnt(4, demand=1.0, chosen=rules(down_window_s=900.0)), quiet.parts())
    assert quiet.cluster.notes == []


async def test_unschedulable_pods_make_a_warning():
    rig = Rig(6)
    history = learnt(6, demand=3.3, chosen=rules()).history
    from services.controller.scaling.deciding import decide

    stuck = pods(6, desired=8, unschedulable=2)
    decision = decide(one(120.0, stuck, load(4.4)), rules(), history)
    await rig.actor.apply(decision, rig.parts())
    assert rig.cluster.notes[0].is_warning
    assert rig.cluster.changes == [("llm", 6)]


class Looks:
    """Always the same sight."""

    def __init__(self, rig: Rig):
        self.rig = rig

    async def look(self):
        size = self.rig.cluster.scales[WORKLOAD].replicas
        pool = PoolSignals(PodCounts(size, 0), held_requests=1)
        return Sight(Signals(0.0, {"llm": pool}), self.rig.parts())


async def test_the_loop_acts_only_while_it_leads_and_answers_reports():
    rig, leads = Rig(0), [False]
    pool = PoolRules("llm", PartRules(2, 4), idle_s=60.0, start_s=42.0)
    loop = ScalingLoop(
        ScalingRules((pool,)), Looks(rig), rig.actor, Demand(Clock()), rig.metrics,
        lambda: leads[0],
    )  # fmt: skip
    await loop.tick()
    assert rig.cluster.changes == []
    with pytest.raises(Unavailable, match="Another controller leads"):
        loop.report("router", {"llm": 1})
    leads[0] = True
    assert loop.report("router", {"llm": 1}) == {}
    await loop.tick()
    assert rig.cluster.changes == [("llm", 2)]
    outlook = loop.report("router", {"llm": 1, "other": 1})
    assert outlook["llm"].replicas == 2
    assert outlook["llm"].ready == 0
    assert outlook["llm"].start_s == 42.0
    assert "other" not in outlook
