"""A tokenizer for tests: one token per byte, and the three control tokens of ChatML."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from understudy.text.tokenizer import Tokenizer

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS_ID = 2


@cache
def tiny_tokenizer_json() -> str:
    """Return the `tokenizer.json` text; 259 tokens, `<|im_end|>` is 2."""
    pieces = [*CONTROL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    engine = Engine(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS]
    )
    return str(engine.to_str())


def tiny_tokenizer() -> Tokenizer:
    """Return the tokenizer."""
    return Tokenizer(tiny_tokenizer_json(), eos_ids=(EOS_ID,))
