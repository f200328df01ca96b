"""Tokens through the wire equal the reference, however they are batched, chunked or resumed."""

import json

import pytest

from services.attention.servicer import to_submission
from tests.contract.attention.conftest import Running, Start
from tests.contract.attention.parts import (
    EOS,
    ROOT,
    VOCAB,
    greedy,
    make_adapter,
    submit,
)
from understudy.api.types.v1 import types_pb2
from understudy.grammar import GrammarSource
from understudy.model.weights import LoadedModel

PROMPTS = {
    1: [65, 66, 67],
    2: list(range(40, 75)),
    3: [90],
    4: [80 - index for index in range(20)],
    5: [65, 66, 67, 68, 69, 70, 71, 72],
}


@pytest.mark.parametrize("token_budget", [3, 16, 256])
async def test_interleaved_sequences_equal_the_reference(
    start: Start, loaded: LoadedModel, token_budget: int
):
    running = await start(token_budget=token_budget)
    router = running.router()
    await router.send(*(submit(i, p, max_tokens=12, kv_root=ROOT) for i, p in PROMPTS.items()))
    for sequence_id, prompt in PROMPTS.items():
        output = await router.result(sequence_id)
        assert output.tokens == greedy(loaded, prompt, 12)
        assert output.reason == types_pb2.FINISH_REASON_LENGTH
        assert all(0.0 <= margin <= 1.0 for margin in output.margins)
        assert all(logprob <= 0.0 for logprob in output.logprobs)
        assert output.mask_losses == [0.0] * 12
    assert router.steps == sorted(set(router.steps))
    await running.check_blocks_free()


async def test_adapters_of_one_batch_equal_the_reference_and_share_no_block(
    worker: Running, loaded: LoadedModel
):
    prompt = PROMPTS[2]
    router = worker.router()
    names = ["", "left", "right"]
    await router.send(
        *(submit(i, prompt, max_tokens=6, kv_root=ROOT, adapter=n) for i, n in enumerate(names))
    )
    for index, name in enumerate(names):
        adapter = make_adapter(name, index - 1, loaded.digest) if name else None
        output = await router.result(index)
        assert output.tokens == greedy(loaded, prompt, 6, adapter)
        assert output.finished.local_cached_tokens == 0
    again = await router.run(submit(9, prompt, max_tokens=6, kv_root=ROOT, adapter="left"))
    assert again.finished.local_cached_tokens == 32
    assert again.tokens == router.outputs[1].tokens


async def test_prefix_is_reused_within_a_tenant_only(worker: Running):
    router = worker.router()
    prompt = PROMPTS[2]
    first = await router.run(submit(1, prompt, max_tokens=4, kv_root=ROOT))
    again = await router.run(submit(2, prompt, max_tokens=4, kv_root=ROOT))
    other = await router.run(submit(3, prompt, max_tokens=4, kv_root=b"s" * 32))
    alone = await router.run(submit(4, prompt, max_tokens=4))
    cached = [o.finished.local_cached_tokens for o in (first, again, other, alone)]
    assert cached == [0, 32, 0, 0]
    assert again.finished.computed_positions == len(prompt) - 32 + 3
    assert first.tokens == again.tokens == other.tokens == alone.tokens


async def test_preempted_sequences_equal_the_reference(start: Start, loaded: LoadedModel):
    running = await start(num_blocks=10, block_size=4)
    router = running.router()
    prompts = {index: [60 + index, 61, 62, 63, 64] for index in range(4)}
    await router.send(*(submit(i, p, max_tokens=24) for i, p in prompts.items()))
    for index, prompt in prompts.items():
        assert (await router.result(index)).tokens == greedy(loaded, prompt, 24)
    labels = {"how": "recompute"}
    assert running.registry.get_sample_value("understudy_attention_preemptions_total", labels) > 0
    await running.check_blocks_free()


SAMPLED = {"temperature": 1.3, "top_p": 0.95, "top_k": 50, "seed": 11, "max_tokens": 16}


async def test_sampled_sequence_resumes_with_the_same_tokens(worker: Running):
    router = worker.router()
    whole = await router.run(submit(1, PROMPTS[1], **SAMPLED))
    assert len(set(whole.tokens)) > 3
    for index, cut in enumerate((1, 7, 15)):
        tokens = [*PROMPTS[1], *whole.tokens[:cut]]
        rest = await router.run(submit(10 + index, tokens, committed=cut, **SAMPLED))
        assert rest.tokens == whole.tokens[cut:]
        assert rest.logprobs == pytest.approx(whole.logprobs[cut:], abs=1e-4)


async def test_seeds_differ(worker: Running):
    router = worker.router()
    outputs = [
        (await router.run(submit(seed, PROMPTS[1], **{**SAMPLED, "seed": seed}))).tokens
        for seed in (1, 2)
    ]
    assert outputs[0] != outputs[1]


SCHEMA = GrammarSource(
    "json_schema",
    json.dumps(
        {
            "type": "object",
            "properties": {
                "name": {"enum": ["GetWeather", "PlayMusic"]},
                "count": {"type": "integer", "minimum": 0, "maximum": 99},
            },
            "required": ["name", "count"],
            "additionalProperties": False,
        }
    ),
)


def text(tokens: list[int], running: Running) -> str:
    return running.worker._served.vocabulary.decode(tokens)


async def test_grammar_binds_the_output_and_marks_forced_tokens(worker: Running):
    output = await worker.router().run(submit(1, PROMPTS[1], grammar=SCHEMA, max_tokens=200))
    answer = json.loads(text(output.tokens, worker))
    assert answer["name"] in ("GetWeather", "PlayMusic")
    assert 0 <= answer["count"] <= 99
    assert output.reason == types_pb2.FINISH_REASON_STOP
    forced = [
        (margin, logprob, loss)
        for is_forced, margin, logprob, loss in zip(
            output.is_forced, output.margins, output.logprobs, output.mask_losses, strict=True
        )
        if is_forced
    ]
    free = len(output.tokens) - len(forced)
    assert set(forced) == {(1.0, 0.0, 0.0)}
    assert 0 < free < len(forced)
    assert any(loss > 0 for loss in output.mask_losses)
    # A free token is the last one of a forward; what is forced after it joins the next one.
    assert output.finished.computed_positions <= len(PROMPTS[1]) + len(output.tokens)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 5}])
async def test_grammar_state_continues_after_committed_tokens(worker: Running, sampling: dict):
    router = worker.router()
    limits = {"grammar": SCHEMA, "max_tokens": 200, **sampling}
    whole = await router.run(submit(1, PROMPTS[1], **limits))
    free = [index for index, is_forced in enumerate(whole.is_forced) if not is_forced]
    for index, cut in enumerate([free[0], free[-1]]):
        tokens = [*PROMPTS[1], *whole.tokens[:cut]]
        rest = await router.run(submit(10 + index, tokens, committed=cut, **limits))
        assert rest.tokens == whole.tokens[cut:]
        assert rest.is_forced == whole.is_forced[cut:]


async def test_wholly_forced_output_computes_nothing(worker: Running):
    grammar = GrammarSource("lark", 'start: "hello"')
    output = await worker.router().run(submit(1, PROMPTS[1], grammar=grammar))
    assert text(output.tokens, worker) == "hello"
    assert output.finished.computed_positions == 0
    assert all(output.is_forced)


async def test_end_of_sequence_is_emitted_and_ends_the_output(worker: Running):
    grammar = GrammarSource("lark", "start: /a*/")
    output = await worker.router().run(
        submit(1, PROMPTS[1], grammar=grammar, temperature=4.0, seed=3, max_tokens=400)
    )
    assert output.tokens[-1] == EOS
    assert output.reason == types_pb2.FINISH_REASON_STOP


async def test_stop_text_ends_the_output_with_the_token_that_completes_it(
    worker: Running, loaded: LoadedModel
):
    reference = greedy(loaded, PROMPTS[1], 32)
    texts = [text([token], worker) for token in reference]
    stop = next(found for found in texts[2:] if found.isascii())
    output = await worker.router().run(submit(1, PROMPTS[1], stop=["never", stop], max_tokens=32))
    assert output.tokens == reference[: texts.index(stop) + 1]
    assert output.reason == types_pb2.FINISH_REASON_STOP


async def test_context_ends_the_output(start: Start):
    running = await start(max_context=12)
    output = await running.router().run(submit(1, [65] * 8, max_tokens=12))
    assert len(output.tokens) == 4
    assert output.reason == types_pb2.FINISH_REASON_LENGTH


async def test_exhausted_resubmission_ends_at_once(worker: Running):
    output = await worker.router().run(submit(1, [65, 66, 67], committed=2, max_tokens=2))
    assert output.tokens == []
    assert output.reason == types_pb2.FINISH_REASON_LENGTH
    assert output.finished.computed_positions == 0


def test_unset_max_tokens_never_exceed_a_small_context():
    message = submit(1, [65])
    assert to_submission((1, 1), message, 64).params.max_tokens == 64
    assert to_submission((1, 1), message, VOCAB * 10).params.max_tokens == 256
