"""What is seen of pools: counts, loads, and what cannot be read."""

from dataclasses import dataclass, field

from services.controller.cluster import Scale, Workload, WorkloadKind
from services.controller.demand import Demand
from services.controller.gathering import Gatherer, Target
from services.controller.scaling.signals import Part
from services.controller.scaling.windows import Info
from tests.unit.controller.fake_cluster import Clock, FakeCluster, FakeReader, pod, series

ATTENTION = Workload(WorkloadKind.DEPLOYMENT, "llm-attention")
EXPERTS = Workload(WorkloadKind.STATEFUL_SET, "llm-experts")


@dataclass
class Rig:
    """A gatherer over a fake cluster with one AFD pool."""

    cluster: FakeCluster = field(default_factory=FakeCluster)
    reader: FakeReader = field(default_factory=FakeReader)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self):
        self.demand = Demand(self.clock)
        self.cluster.scales = {ATTENTION: Scale(2, "a", "1"), EXPERTS: Scale(1, "e", "1")}
        target = Target("llm", {Part.ATTENTION: ATTENTION, Part.EXPERTS: EXPERTS})
        self.gatherer = Gatherer(
            [target], self.cluster, self.reader, self.demand,
            routers="r", patience_s=60.0, clock_s=self.clock,
        )  # fmt: skip

    def serve(self, one, steps: float, running: int = 1):
        self.reader.series[f"{one.ip}:91"] = series(
            understudy_attention_step_seconds_count=steps, understudy_experts_rows_total=steps
        )
        self.reader.infos[f"{one.ip}:90"] = Info(running, 0, 0.5)

    async def look(self, seconds: float = 15.0):
        self.clock.now_s += seconds
        return await self.gatherer.look()


async def test_loads_are_windows_between_two_looks():
    rig = Rig()
    workers = [pod("a1"), pod("b2")]
    rig.cluster.pods_by = {"a": workers, "e": [pod("e1")]}
    for one in [*workers, pod("e1")]:
        rig.serve(one, 100, running=3)
    first = (await rig.look()).signals.pools["llm"]
    assert first.attention_load is None
    assert first.attention.reporting == 0
    for one in [*workers, pod("e1")]:
        rig.serve(one, 130, running=3)
    sight = await rig.look()
    pool = sight.signals.pools["llm"]
    assert pool.attention.reporting == pool.attention.ready == 2
    assert pool.attention_load is not None
    assert pool.attention_load.steps == 60
    assert pool.attention_load.window_s == 15.0
    assert pool.attention_load.running == 6
    assert pool.experts_load is not None
    assert pool.experts_load.rows == 30
    assert sight.parts["llm", Part.ATTENTION].in_flight == {"a1": 3, "b2": 3}


async def test_a_pod_that_does_not_answer_is_not_reporting():
    rig = Rig()
    workers = [pod("a1"), pod("b2")]
    rig.cluster.pods_by = {"a": workers}
    for steps in (100, 130):
        rig.serve(workers[0], steps)
        sight = await rig.look()
    counts = sight.signals.pools["llm"].attention
    assert (counts.ready, counts.reporting) == (2, 1)


async def test_pods_are_counted_by_what_they_are_doing():
    rig = Rig()
    rig.cluster.pods_by = {
        "a": [
            pod("ready"),
            pod("starting", is_ready=False),
            pod("draining", is_terminating=True),
            pod("refused", is_ready=False, is_unschedulable=True),
        ]
    }
    soon = (await rig.look()).signals.pools["llm"].attention
    assert (soon.ready, soon.starting, soon.terminating, soon.unschedulable) == (1, 2, 1, 0)
    late = (await rig.look(60.0)).signals.pools["llm"].attention
    assert (late.starting, late.unschedulable) == (1, 1)
    rig.cluster.pods_by["a"][3] = pod("refused", is_ready=False)
    placed = (await rig.look()).signals.pools["llm"].attention
    assert placed.unschedulable == 0


async def test_a_pool_that_cannot_be_counted_is_left_out_and_held_requests_are_told():
    rig = Rig()
    rig.demand.report("router-1", {"llm": 3})
    assert (await rig.look(1.0)).signals.pools["llm"].held_requests == 3
    rig.cluster.is_away = True
    sight = await rig.look()
    assert sight.signals.pools == {}
    assert sight.parts == {}


async def test_the_time_to_the_first_token_comes_from_the_routers():
    rig = Rig()
    router = pod("router")
    rig.cluster.pods_by = {"r": [router]}
    key = ("gen_ai_server_time_to_first_token_seconds_bucket",)
    for count in (0.0, 10.0):
        rig.reader.series[f"{router.ip}:91"] = {
            (*key, frozenset({("pool", "llm"), ("le", "1")})): count,
            (*key, frozenset({("pool", "llm"), ("le", "+Inf")})): count,
            (*key, frozenset({("pool", "slm"), ("le", "1")})): 0.0,
        }
        sight = await rig.look()
    assert sight.signals.pools["llm"].ttft_s == 0.9


async def test_reports_expire_and_a_zero_withdraws_them():
    clock = Clock()
    demand = Demand(clock)
    demand.report("a", {"llm": 2})
    demand.report("b", {"llm": 1, "slm": 4})
    assert demand.held() == {"llm": 3, "slm": 4}
    demand.report("b", {"llm": 0})
    assert demand.held() == {"llm": 2}
    clock.now_s += 31
    assert demand.held() == {}


async def test_a_first_request_for_a_pool_ends_the_wait():
    demand = Demand(Clock())
    demand.report("a", {"llm": 1})
    await demand.wait(3600.0)
    await demand.wait(0.001)
