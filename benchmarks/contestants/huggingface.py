"""Transformers: `python -m benchmarks.contestants.huggingface DTYPE NUM_THREADS DEVICE`.

Its own `generate` adds more per token than its forward pass; the loop here is the shortest there
is. Weights are those of the GGUF file, expanded.
"""

import sys
import time

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.contestants.protocol import answer, prompt
from understudy.model.families import write_hf
from understudy.model.locate import locate_model
from understudy.model.weights import load_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Transformers:
    """`LlamaForCausalLM` with its own attention (SDPA) and cache."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        loaded = load_model(locate_model("smollm2"))
        model = LlamaForCausalLM(LlamaConfig(**write_hf(loaded.config)))
        model.load_state_dict(dict(loaded.weights), strict=False)
        model.tie_weights()
        self._model = model.to(device=device, dtype=dtype).eval()
        self._device = device
        self._caches: dict[tuple[int, int], tuple[DynamicCache, Tensor]] = {}
        self._num_prompts = 0

    def decode(self, num_sequences: int, context: int, num_tokens: int) -> float:
        """Time one forward a token for all sequences; their prompts are computed once."""
        shape = (num_sequences, context)
        if shape not in self._caches:
            prompts = [prompt(index, context) for index in range(num_sequences)]
            rows = torch.tensor(prompts, device=self._device)
            self._caches[shape] = self._forward(rows, DynamicCache())
        cache, tokens = self._caches[shape]
        tokens.tolist()  # a GPU has done what came before
        started_s = time.perf_counter()
        for _ in range(num_tokens):
            cache, tokens = self._forward(tokens, cache)
        tokens.tolist()  # and what was timed
        seconds = time.perf_counter() - started_s
        cache.crop(-num_tokens)
        return seconds

    def prefill(self, num_tokens: int) -> float:
        """Time one forward over the prompt, with logits of its last token only."""
        self._num_prompts += 1
        rows = torch.tensor([prompt(1000 + self._num_prompts, num_tokens)], device=self._device)
        started_s = time.perf_counter()
        self._forward(rows, DynamicCache())[1].tolist()
        return time.perf_counter() - started_s

    def _forward(self, rows: Tensor, cache: DynamicCache) -> tuple[DynamicCache, Tensor]:
        with torch.inference_mode():
            done = self._model(rows, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return cache, done.logits[:, -1:].argmax(dim=-1)


def main() -> None:
    """Answer the questions on standard input."""
    dtype, num_threads, device = sys.argv[1:]
    torch.set_num_threads(int(num_threads))
    answer(Transformers(DTYPES[dtype], device), {})


if __name__ == "__main__":
    main()
