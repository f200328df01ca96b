"""Placement, epochs and tables."""

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.controller.metrics import ControllerMetrics
from services.controller.placement import (
    Holding,
    PoolMembers,
    Share,
    next_epoch,
    outsiders,
    place,
)
from services.controller.probing import PoolKeeper, announce
from services.controller.settings import ControllerSettings
from services.controller.tables import Tables
from understudy.discovery import Endpoint
from understudy.errors import NotFound, Unavailable
from understudy.serving import HealthState, SettingsError

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

DIGEST = b"d" * 32


def holding(address: str, ids: range = range(4), layers: range = range(3)) -> Holding:
    return Holding(address, DIGEST, layers, tuple(ids))


def preferences(shares: tuple[Share, ...]) -> dict[str, tuple[int, ...]]:
    return {share.holding.address: share.preferred_expert_ids for share in shares}


def test_replicas_that_hold_everything_share_the_experts_evenly():
    assert preferences(place([holding("a"), holding("b")])) == {"a": (0, 1), "b": (2, 3)}
    three = place([holding(address, range(8)) for address in "abc"])
    assert preferences(three) == {"a": (0, 1, 2), "b": (3, 4, 5), "c": (6, 7)}


def test_a_single_holder_is_preferred_for_what_only_it_holds():
    shares = place([holding("a", range(2)), holding("b", range(4))])
    assert preferences(shares) == {"a": (0, 1), "b": (2, 3)}


def test_replicas_of_different_layers_do_not_share():
    shares = place([holding("a", layers=range(2)), holding("b", layers=range(2, 3))])
    assert preferences(shares) == {"a": (0, 1, 2, 3), "b": (0, 1, 2, 3)}


def test_another_model_is_left_out():
    other = Holding("b", b"x" * 32, range(3), (0, 1))
    assert preferences(place([holding("a"), other])) == {"a": (0, 1, 2, 3)}
    assert outsiders([holding("a"), other]) == ["b"]
    assert place([]) == ()


@UNHURRIED
@given(
    members=st.lists(
        st.tuples(st.sets(st.integers(0, 9), min_size=1), st.sampled_from([1, 2])), max_size=6
    )
)
def test_every_expert_of_every_layer_has_exactly_one_preferred_holder(members):
    holdings = [
        Holding(str(index), DIGEST, range(layers), tuple(sorted(ids)))
        for index, (ids, layers) in enumerate(members)
    ]
    shares = place(holdings)
    for layers in (range(1), range(2)):
        group = [share for share in shares if share.holding.layers == layers]
        held = {id_ for share in group for id_ in share.holding.expert_ids}
        preferred = [id_ for share in group for id_ in share.preferred_expert_ids]
        assert sorted(preferred) == sorted(held)
        assert all(set(s.preferred_expert_ids) <= set(s.holding.expert_ids) for s in group)


def test_epochs_grow_even_when_the_clock_does_not():
    assert next_epoch(0, 1000) == 1000
    assert next_epoch(1000, 1000) == 1001
    assert next_epoch(1000, 10) == 1001


async def test_a_watcher_gets_the_first_table_and_each_newer_one():
    tables = Tables(["llm"], clock_ms=lambda: 100)
    watching = tables.watch("llm")
    waiting = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert tables.current("llm") is None
    assert await tables.update("llm", []) is not None
    first = await waiting
    assert (first.epoch, first.shares) == (100, ())
    waiting = asyncio.ensure_future(anext(watching))
    assert await tables.update("llm", []) is None
    assert await tables.update("llm", [holding("a")]) is not None
    second = await waiting
    assert second.epoch == 101
    assert preferences(second.shares) == {"a": (0, 1, 2, 3)}
    assert await tables.update("llm", [holding("a")]) is None
    await watching.aclose()


async def test_an_unknown_pool_is_not_found():
    with pytest.raises(NotFound, match="'vision'"):
        await anext(Tables(["llm"]).watch("vision"))


class FakeProber:
    """Answers what the test says: a holding, None, or an error."""

    def __init__(self) -> None:
        self.answers: dict[str, Holding | Unavailable | None] = {}
        self.forgotten: list[str] = []

    async def forget(self, address: str) -> None:
        self.forgotten.append(address)

    async def probe(self, address: str) -> Holding | None:
        answer = self.answers[address]
        if isinstance(answer, Unavailable):
            raise answer
        return answer


async def test_a_replica_leaves_after_two_unanswered_looks_and_comes_back():
    prober, tables = FakeProber(), Tables(["llm"])
    metrics = ControllerMetrics.on(CollectorRegistry())
    keeper = PoolKeeper(PoolMembers("llm", ("a", "b")), prober, tables, metrics)
    prober.answers = {"a": holding("a"), "b": holding("b")}
    await keeper.look()
    full = tables.current("llm")
    assert preferences(full.shares) == {"a": (0, 1), "b": (2, 3)}
    prober.answers["b"] = Unavailable("No.")
    await keeper.look()
    assert tables.current("llm") is full
    await keeper.look()
    alone = tables.current("llm")
    assert preferences(alone.shares) == {"a": (0, 1, 2, 3)}
    assert alone.epoch > full.epoch
    prober.answers["b"] = holding("b")
    await keeper.look()
    assert preferences(tables.current("llm").shares) == {"a": (0, 1), "b": (2, 3)}


async def test_a_first_look_that_missed_a_replica_publishes_nothing():
    prober, tables = FakeProber(), Tables(["llm"])
    metrics = ControllerMetrics.on(CollectorRegistry())
    keeper = PoolKeeper(PoolMembers("llm", ("a", "b", "c")), prober, tables, metrics)
    prober.answers = {"a": holding("a"), "b": Unavailable("No."), "c": None}
    await keeper.look()
    assert tables.current("llm") is None
    prober.answers["b"] = holding("b")
    await keeper.look()
    assert preferences(tables.current("llm").shares) == {"a": (0, 1), "b": (2, 3)}


async def test_a_replica_that_never_answers_holds_the_first_table_back_for_two_looks_only():
    prober, tables = FakeProber(), Tables(["llm"])
    metrics = ControllerMetrics.on(CollectorRegistry())
    keeper = PoolKeeper(PoolMembers("llm", ("a", "b")), prober, tables, metrics)
    prober.answers = {"a": holding("a"), "b": Unavailable("No.")}
    health = HealthState(is_ready=False)
    announcing = asyncio.ensure_future(announce(tables, health))
    await keeper.look()
    assert not health.is_ready
    await keeper.look()
    await announcing
    assert health.is_ready
    assert preferences(tables.current("llm").shares) == {"a": (0, 1, 2, 3)}


async def test_a_replica_that_says_it_takes_no_work_leaves_at_once():
    prober, tables = FakeProber(), Tables(["llm"])
    metrics = ControllerMetrics.on(CollectorRegistry())
    keeper = PoolKeeper(PoolMembers("llm", ("a",)), prober, tables, metrics)
    prober.answers = {"a": holding("a")}
    await keeper.look()
    prober.answers = {"a": None}
    await keeper.look()
    assert tables.current("llm").shares == ()


class Told:
    """A discovery that tells what a test says, one set of peers after the other."""

    def __init__(self, *told: set[str]) -> None:
        self.told = told

    async def watch(self):
        for addresses in self.told:
            yield frozenset(Endpoint(address) for address in addresses)

    async def aclose(self) -> None:
        pass


async def test_discovered_expert_workers_join_at_the_next_look_and_leave_at_once():
    prober, tables = FakeProber(), Tables(["llm"])
    metrics = ControllerMetrics.on(CollectorRegistry())
    keeper = PoolKeeper(PoolMembers("llm", (), "k8s:prod/experts:grpc"), prober, tables, metrics)
    assert len(keeper.tasks(1.0)) == 2
    prober.answers = {"a": holding("a"), "b": holding("b")}
    await keeper.follow(Told({"a", "b"}))
    assert tables.current("llm") is None, "nobody has answered yet"
    await keeper.look()
    assert [share.holding.address for share in tables.current("llm").shares] == ["a", "b"]
    await keeper.follow(Told({"b"}))
    assert [share.holding.address for share in tables.current("llm").shares] == ["b"]
    assert prober.forgotten == ["a"]


def test_expert_workers_may_be_discovered():
    pools = json.dumps([{"pool": "llm", "replicas": "k8s:prod/experts:grpc"}])
    settings = ControllerSettings.from_env({"UNDERSTUDY_CONTROLLER_POOLS": pools})
    assert settings.members() == (PoolMembers("llm", (), "k8s:prod/experts:grpc"),)


def test_pools_are_read_from_json_or_a_file(tmp_path):
    pools = json.dumps([{"pool": "llm", "replicas": ["h:1", "h:2", "h:1"]}])
    path = tmp_path / "pools.json"
    path.write_text(pools)
    for text in (pools, f"@{path}"):
        settings = ControllerSettings.from_env({"UNDERSTUDY_CONTROLLER_POOLS": text})
        assert settings.members() == (PoolMembers("llm", ("h:1", "h:2")),)


@pytest.mark.parametrize(
    ("pools", "sentence"),
    [
        ("no json", "no JSON"),
        ("{}", "must be a JSON list"),
        ('[{"pool": "llm"}]', "write each as"),
        ('[{"pool": "llm", "replicas": "host:1"}]', "no k8s:"),
        ('[{"pool": "llm", "replicas": "k8s:nowhere"}]', "not of the form"),
        ('[{"pool": "", "replicas": []}]', "write each as"),
        ('[{"pool": "llm", "replicas": [], "more": 1}]', "write each as"),
        ('[{"pool": "llm", "replicas": [3]}]', "no host:port"),
        ('[{"pool": "llm", "replicas": ["host"]}]', "host"),
        ('[{"pool": "a", "replicas": []}, {"pool": "a", "replicas": []}]', "twice"),
    ],
)
def test_malformed_pools_are_refused_by_name(pools: str, sentence: str):
    with pytest.raises(SettingsError, match=sentence):
        ControllerSettings.from_env({"UNDERSTUDY_CONTROLLER_POOLS": pools})


def test_a_bad_interval_is_refused_by_name():
    environ = {
        "UNDERSTUDY_CONTROLLER_POOLS": "[]",
        "UNDERSTUDY_CONTROLLER_PROBE_INTERVAL_S": "0",
    }
    with pytest.raises(SettingsError, match="PROBE_INTERVAL_S"):
        ControllerSettings.from_env(environ)
