"""The shipped LLM, decoded by our forward pass over paged KV, against Hugging Face transformers."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from understudy.model.decoder import Compute, Decoder, make_decoder, resolve_compute
from understudy.model.locate import locate_model
from understudy.model.paged import PagedKv, PagedSequence
from understudy.model.weights import LoadedModel, load_model
from understudy.text.tokenizer import Tokenizer

NUM_NEW = 64
BLOCK_SIZE = 16
# As published for SmolLM2-135M-Instruct, not as our reader of the file understands it.
PUBLISHED = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=100_000.0,
    tie_word_embeddings=True,
)
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "Water boils at a temperature of",
    "The three primary colours are",
    "Dear Sir or Madam,\n\nI am writing to",
    "Photosynthesis is the process by which",
    "1, 2, 3, 5, 8, 13,",
    "In 1969, the first human being",
    "To bake a simple loaf of bread you need",
    "The opposite of courage is",
    "SELECT name FROM users WHERE",
    "A prime number is a natural number that",
    "It was a dark and stormy night;",
    "The mitochondrion is known as",
    "Machine learning differs from statistics in that",
    "Question: How many legs does a spider have?\nAnswer:",
    "The quick brown fox",
    "<|im_start|>user\nWhat is the largest planet?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nTranslate 'good morning' into Spanish.<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = Tokenizer.from_gguf(locate_model("smollm2"))
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def continued(prompts: list[list[int]]) -> list[list[int]]:
    with warnings.catch_warnings():
        # Loading a GGUF file inside transformers trips over its own deprecations, not ours.
        warnings.simplefilter("ignore")
        return _continue_with_transformers(locate_model("smollm2"), prompts)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compute", ["exact", "reference"])
def test_twenty_greedy_continuations_equal_transformers(
    compute: Compute, prompts: list[list[int]], continued: list[list[int]]
) -> None:
    loaded = load_model(locate_model("smollm2"), compute=resolve_compute(compute))

    ours = _continue_paged(loaded, prompts)

    assert len(ours) == len(PROMPTS)
    for prompt, actual, expected in zip(PROMPTS, ours, continued, strict=True):
        assert actual == expected, prompt


def _continue_paged(loaded: LoadedModel, prompts: list[list[int]]) -> list[list[int]]:
    model = make_decoder(loaded.config, loaded.stored, None, loaded.compute)
    blocks_each = -(-256 // BLOCK_SIZE)
    kv = PagedKv(loaded.config, blocks_each * len(prompts), BLOCK_SIZE)
    tables = [list(range(i * blocks_each, (i + 1) * blocks_each)) for i in range(len(prompts))]
    texts, cached = [list(prompt) for prompt in prompts], [0] * len(prompts)
    with torch.inference_mode():
        for _ in range(NUM_NEW):
            sequences = [
                PagedSequence(table, done, len(text) - done)
                for table, done, text in zip(tables, cached, texts, strict=True)
            ]
            for text, token in zip(texts, _step(model, kv, texts, sequences), strict=True):
                text.append(token)
            cached = [sequence.end for sequence in sequences]
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def _step(
    model: Decoder, kv: PagedKv, texts: list[list[int]], sequences: list[PagedSequence]
) -> list[int]:
    pairs = list(zip(texts, sequences, strict=True))
    tokens = [token for text, sequence in pairs for token in text[sequence.num_cached :]]
    hidden = model.advance(torch.tensor(tokens), kv, sequences)
    last_rows = torch.tensor([s.num_new for s in sequences]).cumsum(0) - 1
    chosen: list[int] = model.logits(hidden[last_rows]).argmax(-1).tolist()
    return chosen


def _continue_with_transformers(path: Path, prompts: list[list[int]]) -> list[list[int]]:
    reference = _reference(path)
    longest = max(map(len, prompts))
    padded = torch.tensor([[2] * (longest - len(prompt)) + prompt for prompt in prompts])
    is_real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        generated: Tensor = reference.generate(
            padded,
            attention_mask=is_real,
            max_new_tokens=NUM_NEW,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=2,
        )
    continuations: list[list[int]] = generated[:, longest:].tolist()
    return continuations


def _reference(path: Path) -> LlamaForCausalLM:
    # `from_pretrained(gguf_file=...)` insists on accelerate; its reader of GGUF files does not.
    model = LlamaForCausalLM(PUBLISHED)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model.eval()
