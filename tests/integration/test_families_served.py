"""Families other than llama, served: sessions over gRPC, experts elsewhere, every type of KV."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from services.attention.clients import RemoteExperts
from services.attention.loading import load_weights, serve_model
from services.attention.observers import NoObserver
from services.attention.servicer import SERVICE, SESSION_METHOD, AttentionServicer
from services.attention.settings import AttentionSettings
from services.attention.worker import AttentionWorker
from services.experts.holdings import Holdings
from services.experts.settings import ExpertsSettings
from tests.contract.attention.parts import EOS, ROOT, VOCAB, Router, byte_tokenizer, greedy, submit
from tests.contract.experts.parts import Fleet, forward, seeded
from tests.unit.model.configs import ALL
from understudy.api.attention.v1 import attention_pb2_grpc
from understudy.errors import Unavailable
from understudy.model.config import ModelConfig
from understudy.model.decoder import resolve_compute
from understudy.model.safetensors_io import save_model
from understudy.model.weights import LoadedModel, load_model, random_weights
from understudy.rpc import open_channel
from understudy.serving import HealthState, ServingSettings, start_service

PROMPTS = ([65, 66, 67], list(range(40, 75)), [80 - index for index in range(20)])
MIXTURES = ("qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "longcat_flash", "step3_text")


def _write(directory: Path, config: ModelConfig) -> LoadedModel:
    config = replace(config, vocab_size=VOCAB, max_positions=512, bos_id=None, eos_ids=(EOS,))
    save_model(directory, config, random_weights(config, seed=7, deviation=0.3))
    (directory / "tokenizer.json").write_text(byte_tokenizer(), "utf-8")
    return load_model(directory)


@asynccontextmanager
async def _session(
    directory: Path, experts: RemoteExperts | None = None, **changes: object
) -> AsyncIterator[Router]:
    settings = AttentionSettings(
        model=str(directory), model_name="tiny", num_blocks=64, block_size=8, **changes
    )
    worker = AttentionWorker(
        serve_model(settings, load_weights(settings), experts),
        settings,
        observer=NoObserver() if experts is None else experts,
        tier=None,
        health=HealthState(is_ready=False),
        registry=CollectorRegistry(),
    )
    worker.start()
    service = await start_service(
        "attention-test",
        AttentionServicer(worker).register,
        settings=ServingSettings(),
        services=[SERVICE],
        endless=[SESSION_METHOD],
    )
    async with open_channel(service.address) as channel:
        router = Router(attention_pb2_grpc.AttentionServiceStub(channel))
        yield router
        router.call.cancel()
    await service.drain(0.0)
    await worker.stop()


async def _answers(router: Router) -> list[list[int]]:
    submitted = (submit(i, p, max_tokens=10, kv_root=ROOT) for i, p in enumerate(PROMPTS))
    await router.send(*submitted)
    return [(await router.result(index)).tokens for index in range(len(PROMPTS))]


@pytest.mark.parametrize("name", ALL)
async def test_sessions_give_the_tokens_of_the_packed_reference(name: str, tmp_path: Path) -> None:
    loaded = _write(tmp_path, ALL[name])

    async with _session(tmp_path, token_budget=16) as router:
        answers = await _answers(router)

    assert answers == [greedy(loaded, prompt, 10) for prompt in PROMPTS]


@pytest.mark.parametrize("name", MIXTURES)
async def test_experts_on_two_workers_give_the_same_tokens(name: str, tmp_path: Path) -> None:
    loaded = _write(tmp_path, ALL[name])
    half = loaded.config.num_experts // 2

    async with AsyncExitStack() as stack:
        fleet = Fleet(stack)
        await fleet.add_worker(loaded, expert_ids=range(half))
        await fleet.add_worker(loaded, expert_ids=range(half, 2 * half))
        _, _, controller = await fleet.control()
        remote = await fleet.connect(loaded, controller)
        tokens = torch.arange(11) * 7 % 97
        apart = await asyncio.to_thread(forward, loaded, remote, tokens)
        assert torch.equal(apart, forward(loaded, None, tokens))
        async with _session(tmp_path, remote) as router:
            answers = await _answers(router)

    assert answers == [greedy(loaded, prompt, 10) for prompt in PROMPTS]


@pytest.mark.parametrize("name", ["mixtral", *MIXTURES])
async def test_packed_experts_on_two_workers_give_the_tokens_of_one_process(
    name: str, tmp_path: Path
) -> None:
    _write(tmp_path, ALL[name])
    packed = load_model(tmp_path, "int8", resolve_compute("exact"))
    half = packed.config.num_experts // 2

    async with AsyncExitStack() as stack:
        fleet = Fleet(stack)
        await fleet.add_worker(packed, expert_ids=range(half))
        await fleet.add_worker(packed, expert_ids=range(half, 2 * half))
        _, _, controller = await fleet.control()
        remote = await fleet.connect(packed, controller)
        async with _session(tmp_path, remote, weights_dtype="int8") as router:
            apart = await _answers(router)
    async with _session(tmp_path, weights_dtype="int8") as router:
        together = await _answers(router)

    assert apart == together


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "float16", "int8"])
async def test_latents_of_every_type_answer_and_16_bit_weights_serve(
    kv_dtype: str, tmp_path: Path
) -> None:
    _write(tmp_path, ALL["deepseek_v3"])
    half = load_model(tmp_path, "bfloat16")

    async with _session(tmp_path, kv_dtype=kv_dtype, weights_dtype="bfloat16") as router:
        answers = await _answers(router)

    assert all(len(answer) == 10 for answer in answers)
    if kv_dtype == "float32":
        assert answers == [greedy(half, prompt, 10) for prompt in PROMPTS]


async def test_workers_that_keep_other_types_of_weights_are_not_used(tmp_path: Path) -> None:
    loaded = _write(tmp_path, ALL["deepseek_v3"])

    async with AsyncExitStack() as stack:
        fleet = Fleet(stack)
        await fleet.add_worker(load_model(tmp_path, "bfloat16"))
        _, _, controller = await fleet.control()
        remote = RemoteExperts(loaded.config, loaded.ffn_digest, controller, "llm")
        stack.push_async_callback(asyncio.to_thread, remote.close)
        with pytest.raises(Unavailable, match="not complete"):
            await asyncio.to_thread(remote.start, 0.5)


def test_settings_name_the_types(tmp_path: Path) -> None:
    _write(tmp_path, ALL["deepseek_v3"])
    settings = AttentionSettings(
        model=str(tmp_path), model_name="tiny", num_blocks=8, weights_dtype="float16"
    )
    plain = replace(settings, weights_dtype="float32")
    small = replace(settings, kv_dtype="int8")

    digests = {
        serve_model(chosen, load_weights(chosen)).kv_digests[""]
        for chosen in (settings, plain, small)
    }

    assert len(digests) == 3
    assert (
        ExpertsSettings.from_env(
            {"UNDERSTUDY_EXPERTS_MODEL": "m", "UNDERSTUDY_EXPERTS_WEIGHTS_DTYPE": "bfloat16"}
        ).weights_dtype
        == "bfloat16"
    )


def test_a_dense_layer_of_a_mixture_is_held_by_slices() -> None:
    model = seeded(ALL["deepseek_v3"])
    held = Holdings.take(model, expert_ids=range(4))

    assert held.shards == (0,)
    assert held.weights.partial(0, 0, torch.ones(1, 32), None).shape == (1, 32)
