"""The same sums whoever computes them, and whoever dies in between."""

import asyncio
import math

import pytest
import torch

from services.attention.clients import RemoteExperts
from services.attention.observers import TraceSegment
from tests.contract.experts.parts import DENSE, MIXTURE, POOL, Fleet, forward, seeded, until
from understudy.errors import Unavailable
from understudy.exchange.frame import Header

MODELS = pytest.mark.parametrize("config", [DENSE, MIXTURE], ids=["dense", "mixture"])


@MODELS
@pytest.mark.parametrize("num_workers", [1, 2, 3])
async def test_any_number_of_workers_gives_the_fused_hidden_states(
    config, num_workers, fleet: Fleet, tokens
):
    model = seeded(config)
    for _ in range(num_workers):
        await fleet.add_worker(model)
    _, _, controller = await fleet.control()
    experts = await fleet.connect(model, controller)
    remote = await asyncio.to_thread(forward, model, experts, tokens)
    assert torch.equal(remote, forward(model, None, tokens))


@MODELS
async def test_workers_that_hold_disjoint_shards_give_the_fused_hidden_states(
    config, fleet: Fleet, tokens
):
    model = seeded(config)
    await fleet.add_worker(model, expert_ids=[2, 3])
    await fleet.add_worker(model, expert_ids=[0, 1], layers=[0])
    await fleet.add_worker(model, expert_ids=[0, 1], layers=[1, 2])
    _, _, controller = await fleet.control()
    experts = await fleet.connect(model, controller)
    remote = await asyncio.to_thread(forward, model, experts, tokens)
    assert torch.equal(remote, forward(model, None, tokens))


async def test_a_message_above_one_frame_travels_in_parts(fleet: Fleet):
    model = seeded(DENSE)
    await fleet.add_worker(model)
    _, _, controller = await fleet.control()
    experts = await fleet.connect(model, controller)
    hidden = torch.randn(5000, DENSE.hidden_size, generator=torch.Generator().manual_seed(1))
    total = await asyncio.to_thread(lambda: experts.submit(0, hidden, None).wait())
    weights = fleet.workers[0].worker.holdings.weights
    partials = [weights.partial(0, shard, hidden, None) for shard in range(4)]
    assert torch.equal(total, partials[0] + partials[1] + partials[2] + partials[3])


@MODELS
async def test_a_worker_that_dies_while_computing_is_replaced_by_the_other(
    config, fleet: Fleet, tokens, monkeypatch
):
    model = seeded(config)
    victim, survivor = await fleet.add_worker(model), await fleet.add_worker(model)
    _, _, controller = await fleet.control()
    experts = await fleet.connect(model, controller)
    computing, killed = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    compute = victim.worker.holdings.__class__.compute

    def stuck(holdings, header: Header, request):
        if holdings is victim.worker.holdings and header.layer == 1:
            loop.call_soon_threadsafe(computing.set)
            asyncio.run_coroutine_threadsafe(killed.wait(), loop).result()
        return compute(holdings, header, request)

    monkeypatch.setattr(victim.worker.holdings.__class__, "compute", stuck)
    running = asyncio.create_task(asyncio.to_thread(forward, model, experts, tokens))
    await computing.wait()
    await victim.kill()
    remote = await running
    killed.set()
    assert torch.equal(remote, forward(model, None, tokens))
    assert survivor.registry.get_sample_value("understudy_experts_frames_total", {"status": "ok"})


async def test_a_worker_that_does_not_answer_in_time_is_replaced_by_the_other(
    fleet: Fleet, tokens, monkeypatch
):
    model = seeded(DENSE)
    victim = await fleet.add_worker(model)
    await fleet.add_worker(model)
    _, _, controller = await fleet.control()
    experts = await fleet.connect(model, controller, frame_timeout_s=0.3)
    monkeypatch.setattr(victim.worker, "admit", lambda frame, answer: None)
    remote = await asyncio.to_thread(forward, model, experts, tokens)
    assert torch.equal(remote, forward(model, None, tokens))


async def test_a_draining_worker_hands_its_frames_to_the_other(fleet: Fleet, tokens):
    model = seeded(DENSE)
    victim = await fleet.add_worker(model)
    await fleet.add_worker(model)
    _, _, controller = await fleet.control()
    experts = await fleet.connect(model, controller)
    victim.worker.drain()
    remote = await asyncio.to_thread(forward, model, experts, tokens)
    assert torch.equal(remote, forward(model, None, tokens))


async def test_without_any_replica_the_call_is_unavailable_after_its_window(fleet: Fleet, tokens):
    model = seeded(DENSE)
    only = await fleet.add_worker(model)
    _, _, controller = await fleet.control()
    experts = await fleet.connect(model, controller, retry_window_s=0.3)
    await only.kill()
    with pytest.raises(Unavailable, match=r"layer 0 within 0\.3 s"):
        await asyncio.to_thread(forward, model, experts, tokens)


async def test_a_worker_that_comes_back_within_the_window_is_used(fleet: Fleet, tokens):
    model = seeded(DENSE)
    only = await fleet.add_worker(model)
    _, _, controller = await fleet.control()
    experts = await fleet.connect(model, controller)
    only.worker.drain()
    running = asyncio.create_task(asyncio.to_thread(forward, model, experts, tokens))
    only.worker._is_draining = False
    assert torch.equal(await running, forward(model, None, tokens))


async def test_a_stale_epoch_is_refused_and_the_frame_is_sent_again_under_the_newer_one(
    fleet: Fleet, tokens
):
    model = seeded(DENSE)
    worker = await fleet.add_worker(model)
    _, tables, controller = await fleet.control()
    experts = await fleet.connect(model, controller)
    worker.worker._epoch = tables.current("llm").epoch + 1000
    remote = await asyncio.to_thread(forward, model, experts, tokens)
    assert torch.equal(remote, forward(model, None, tokens))
    refused = {"status": "stale_epoch"}
    assert worker.registry.get_sample_value("understudy_experts_frames_total", refused) >= 1


async def test_a_pool_of_another_model_is_not_used_and_the_error_says_so(fleet: Fleet):
    await fleet.add_worker(seeded(DENSE, digest="cd" * 32))
    _, _, controller = await fleet.control()
    model = seeded(DENSE)
    experts = RemoteExperts(DENSE, bytes.fromhex(model.digest), controller, "llm")
    try:
        with pytest.raises(Unavailable, match="give both the same weights"):
            await asyncio.to_thread(experts.start, 1.0)
    finally:
        await asyncio.to_thread(experts.close)


async def test_a_table_without_replicas_leaves_the_last_one_in_place(fleet: Fleet, tokens):
    model = seeded(DENSE)
    await fleet.add_worker(model)
    _, tables, controller = await fleet.control()
    experts = await fleet.connect(model, controller, retry_window_s=1.0)
    await tables.update(POOL, [])
    await asyncio.to_thread(until, lambda: "knows no live expert worker" in experts._failure)
    remote = await asyncio.to_thread(forward, model, experts, tokens)
    assert torch.equal(remote, forward(model, None, tokens))


async def test_an_unknown_pool_is_named_in_the_error(fleet: Fleet):
    await fleet.add_worker(seeded(DENSE))
    _, _, controller = await fleet.control()
    experts = RemoteExperts(DENSE, b"\0" * 32, controller, "vision")
    try:
        with pytest.raises(Unavailable, match="'vision' has no expert workers"):
            await asyncio.to_thread(experts.start, 1.0)
    finally:
        await asyncio.to_thread(experts.close)


async def test_rows_in_the_spans_add_up_to_positions_times_layers(fleet: Fleet, tokens):
    model = seeded(DENSE)
    workers = [await fleet.add_worker(model), await fleet.add_worker(model)]
    _, _, controller = await fleet.control()
    experts = await fleet.connect(model, controller)
    parents = [f"00-{'1' * 32}-{digit * 16}-01" for digit in "12"]
    for step in range(2):
        segments = [TraceSegment(parents[0], 8), TraceSegment(parents[1], 2), TraceSegment("", 1)]
        experts.begin_step(step, segments, math.inf)
        await asyncio.to_thread(forward, model, experts, tokens)
    for parent in parents:
        experts.end_trace(parent)
    await asyncio.to_thread(until, lambda: sum(len(w.spans) for w in workers) == 18)
    spans = [span for worker in workers for span in worker.spans]
    for shard in range(DENSE.num_ffn_shards):
        for parent, rows in zip(parents, (8, 2), strict=True):
            counted = [
                span.tokens
                for span in spans
                if span.key.traceparent == parent
                and 0 <= shard - span.key.first_shard < span.key.num_shards
            ]
            assert sum(counted) == 2 * rows * DENSE.num_layers
