"""The same tokens from transformers, fused, disaggregated, and with a worker killed under way."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.integration.processes import Processes, Running, run_session, submit_of
from understudy.model.families import write_hf
from understudy.model.gguf import read_gguf
from understudy.text.tokenizer import Tokenizer

NUM_TOKENS = 24
KILL_AFTER_TOKENS = 20
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
)


@dataclass
class Expected:
    """Prompts as token ids, and what transformers continues them with."""

    prompts: list[list[int]]
    tokens: list[list[int]]


@pytest.fixture(scope="module")
def expected(smollm2: Path) -> Expected:
    tokenizer = Tokenizer.from_gguf(smollm2)
    config, tensors = read_gguf(smollm2)
    weights = dict(tensors)
    reference = LlamaForCausalLM(LlamaConfig(**write_hf(config))).eval()
    reference.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    tokens = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            answer = reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NUM_TOKENS,
                min_new_tokens=NUM_TOKENS,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        tokens.append(answer[0, len(prompt) :].tolist())
    return Expected(prompts, tokens)


def start_disaggregated(processes: Processes, smollm2: Path) -> tuple[Running, list[Running]]:
    experts = [processes.start("experts", model=str(smollm2)) for _ in range(2)]
    pools = [{"pool": "llm", "replicas": [worker.address for worker in experts]}]
    controller = processes.start("controller", pools=json.dumps(pools))
    attention = processes.start(
        "attention",
        model=str(smollm2),
        model_name="smollm2",
        pool="llm",
        ffn="remote",
        placement=controller.address,
        threads="1",
    )
    return attention, experts


def tokens_from(attention: Running, expected: Expected, **hooks: object) -> list[list[int]]:
    submits = [submit_of(i, prompt, NUM_TOKENS) for i, prompt in enumerate(expected.prompts)]
    outcomes = run_session(attention.address, submits, **hooks)  # type: ignore[arg-type]
    assert not [outcome.failed for outcome in outcomes.values() if outcome.failed]
    return [outcomes[i].tokens for i in range(len(submits))]


def test_fused_worker_gives_the_tokens_of_transformers(
    processes: Processes, smollm2: Path, expected: Expected
) -> None:
    attention = processes.start("attention", model=str(smollm2), model_name="smollm2", threads="1")
    assert tokens_from(attention, expected) == expected.tokens


def test_two_expert_workers_and_a_killed_one_give_the_tokens_of_transformers(
    processes: Processes, smollm2: Path, expected: Expected
) -> None:
    attention, experts = start_disaggregated(processes, smollm2)
    assert tokens_from(attention, expected) == expected.tokens
    is_killed = False

    def kill_one(num_tokens: int) -> None:
        nonlocal is_killed
        if num_tokens >= KILL_AFTER_TOKENS and not is_killed:
            is_killed = True
            experts[0].child.kill()

    assert tokens_from(attention, expected, on_tokens=kill_one) == expected.tokens
    assert is_killed
    assert experts[0].child.exit_code() == -9
