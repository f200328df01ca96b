"""What rounding does to SmolLM2's logits: `python -m benchmarks.precision [--prompts N]`.

Greedy continuations in `exact` over float32 keys and values are the yardstick; the other
arithmetics get the same tokens and are asked what they would have said next. Prompts are the
beginnings of this repository's documents.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from benchmarks.cores import BLOCK_SIZE, smollm2
from services.attention.loading import load_tokenizer
from understudy.model.decoder import Decoder
from understudy.model.locate import locate_model
from understudy.model.paged import PagedKv, PagedSequence

PROMPT_TOKENS: Final = 160
STEPS: Final = 24
ARMS: Final = (
    ("exact, float16", "exact", torch.float16),
    ("fast, float32", "fast", torch.float32),
    ("fast, float16", "fast", torch.float16),
)


def prompts(count: int) -> list[list[int]]:
    """Return the beginnings of that many documents, as tokens."""
    tokenizer = load_tokenizer("auto", locate_model("smollm2"))
    files = sorted((Path(__file__).parents[1] / "docs").rglob("*.md"))[:count]
    return [tokenizer.encode(file.read_text()[:2500])[:PROMPT_TOKENS] for file in files]


def continuation(
    decoder: Decoder, tokens: Sequence[int], dtype: torch.dtype, forced: Sequence[int] | None = None
) -> tuple[list[int], Tensor]:
    """Return the greedy choices and logits (STEPS, V) after a prompt, fed with `forced` tokens."""
    kv = PagedKv(decoder.config, (len(tokens) + STEPS) // BLOCK_SIZE + 1, BLOCK_SIZE, dtype)
    blocks, fed, num_cached = list(range(kv.num_blocks)), list(tokens), 0
    chosen: list[int] = []
    rows: list[Tensor] = []
    with torch.inference_mode():
        for step in range(STEPS):
            sequence = PagedSequence(blocks, num_cached, len(fed))
            hidden = decoder.advance(torch.tensor(fed), kv, [sequence])
            num_cached += len(fed)
            rows.append(decoder.logits(hidden[-1:])[0])
            chosen.append(int(rows[-1].argmax()))
            fed = [chosen[-1] if forced is None else forced[step]]
    return chosen, torch.stack(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print agreement and distance of each arm."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--prompts", type=int, default=9, help="documents to continue")
    wanted = parser.parse_args(arguments)
    decoders = {"exact": smollm2("exact").decoder, "fast": smollm2("fast").decoder}
    same = dict.fromkeys((name for name, _, _ in ARMS), 0)
    distances: dict[str, list[float]] = {name: [] for name in same}
    asked = prompts(wanted.prompts)
    for tokens in asked:
        chosen, logits = continuation(decoders["exact"], tokens, torch.float32)
        for name, compute, dtype in ARMS:
            theirs, found = continuation(decoders[compute], tokens, dtype, chosen)
            same[name] += sum(a == b for a, b in zip(chosen, theirs, strict=True))
            distance = (logits - found).square().mean().sqrt() / logits.std()
            distances[name].append(distance.item())
    print("| arithmetic, keys and values | same next token | distance of logits over spread |")
    print("| --- | --- | --- |")
    for name, values in distances.items():
        mean = sum(values) / len(values)
        print(f"| {name} | {same[name]} of {STEPS * len(asked)} | {mean:.2%} |")


if __name__ == "__main__":
    main()
