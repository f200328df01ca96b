"""Priority, tenant and deadline as a router sees them over the wire."""

import pytest

from services.attention.servicer import to_submission
from tests.contract.attention.conftest import Running, Start
from tests.contract.attention.parts import ROOT, greedy, submit
from understudy.api.types.v1 import types_pb2
from understudy.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted
from understudy.model.weights import LoadedModel

BATCH, INTERACTIVE = types_pb2.PRIORITY_BATCH, types_pb2.PRIORITY_INTERACTIVE
MAX_BLOCKS = 64


async def test_unknown_priority_is_refused_by_field(worker: Running):
    output = await worker.router().run(submit(1, [5, 6], priority=77))
    assert isinstance(output.error, InvalidArgument)
    assert output.error.metadata["field"] == "priority"


def test_unset_priority_means_standard():
    assert to_submission((1, 1), submit(1, [5]), 64).priority.name == "STANDARD"
    assert to_submission((1, 1), submit(1, [5], priority=BATCH), 64).priority.name == "BATCH"


async def test_preempted_batch_sequence_gives_the_tokens_of_an_undisturbed_run(
    start: Start, loaded: LoadedModel
):
    running = await start(num_blocks=12, max_sequences=2, token_budget=32)
    router = running.router()
    batch, urgent = list(range(5, 45)), list(range(60, 110))
    await router.send(submit(1, batch, priority=BATCH, max_tokens=24, kv_root=ROOT))
    while not router.outputs.get(1) or not router.outputs[1].tokens:
        await router.read()
    await router.send(submit(2, urgent, priority=INTERACTIVE, max_tokens=12))
    assert (await router.result(2)).tokens == greedy(loaded, urgent, 12)
    assert (await router.result(1)).tokens == greedy(loaded, batch, 24)
    await running.check_blocks_free()
    labels = {"how": "recompute"}
    preempted = running.registry.get_sample_value("understudy_attention_preemptions_total", labels)
    assert preempted is not None and preempted >= 1


async def test_long_prefix_that_arrives_together_is_computed_once(
    start: Start, loaded: LoadedModel
):
    running = await start(token_budget=16)
    router = running.router()
    prefix = [5 + index % 90 for index in range(64)]
    prompts = {index: [*prefix, 100 + index] for index in range(1, 5)}
    await router.send(
        *(submit(i, prompt, kv_root=ROOT, max_tokens=2) for i, prompt in prompts.items())
    )
    outputs = [await router.result(index) for index in prompts]
    for output, prompt in zip(outputs, prompts.values(), strict=True):
        assert output.tokens == greedy(loaded, prompt, 2)
    computed = sorted(output.finished.computed_positions for output in outputs)
    assert computed == [2, 2, 2, 66]


async def test_deadline_that_cannot_be_met_is_refused_early(start: Start):
    running = await start(num_blocks=MAX_BLOCKS)
    router = running.router()
    await router.run(submit(1, [5, 6, 7], max_tokens=64))
    output = await router.run(submit(2, [5] * 40, max_tokens=400, time_left_s=0.0001))
    assert isinstance(output.error, DeadlineExceeded)
    assert output.finished is None


async def test_batch_queue_is_refused_at_half_with_retry_delay(start: Start):
    running = await start(num_blocks=16, max_sequences=1, max_waiting=2)
    router = running.router()
    await router.send(submit(1, [5, 6], max_tokens=120, priority=INTERACTIVE))
    while not router.outputs.get(1) or not router.outputs[1].tokens:
        await router.read()
    await router.send(*(submit(i, [5, 6], priority=BATCH, max_tokens=1) for i in (2, 3)))
    refused = await router.result(3)
    assert isinstance(refused.error, ResourceExhausted)
    assert refused.error.retry_after_s > 0
    await router.cancel(1)
    assert (await router.result(2)).error is None
    await running.check_blocks_free()


@pytest.mark.parametrize("ending", ["cancel", "expiry"])
async def test_ended_batch_group_leaves_no_block_behind(start: Start, ending: str):
    running = await start(num_blocks=16, max_sequences=1, block_size=8)
    router = running.router()
    time_left_s = 60.0 if ending == "cancel" else 0.3
    prefix = list(range(5, 25))
    for index in range(1, 5):
        await router.send(
            submit(
                index, [*prefix, 100 + index], priority=BATCH, kv_root=ROOT, max_tokens=100,
                time_left_s=time_left_s,
            )
        )  # fmt: skip
    while not router.outputs.get(1) or not router.outputs[1].tokens:
        await router.read()
    if ending == "cancel":
        for index in range(1, 5):
            await router.cancel(index)
        await router.run(submit(9, [5], max_tokens=1))  # read after the cancels
    else:
        for index in range(1, 5):
            await router.result(index)
    await running.check_blocks_free()
