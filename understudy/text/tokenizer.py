"""Byte-level BPE tokenizer, read from GGUF metadata or a `tokenizer.json`.

Special tokens are recognised only in segments that say so: text that a caller wrote can never
open or close a chat turn, whatever it spells.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeGuard

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from understudy.errors import FailedPrecondition
from understudy.gguf_header import map_file, parse_header
from understudy.text.vocabulary import Vocabulary

_CONTROL_TOKEN_TYPE = 3


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of prompt text; only special segments may contain special tokens."""

    text: str
    is_special: bool = False


Prompt = tuple[Segment, ...]


def prompt_text(prompt: Prompt) -> str:
    """Return the prompt as one string, as a model trained on plain text would see it."""
    return "".join(segment.text for segment in prompt)


class Tokenizer:
    """Encode prompts and decode answers; immutable after construction, safe between threads."""

    def __init__(self, source: str, eos_ids: Sequence[int] = (2,)) -> None:
        """Build from the text of a `tokenizer.json`."""
        try:
            self._parsing = tokenizers.Tokenizer.from_str(source)
            self._plain = tokenizers.Tokenizer.from_str(source)
        except Exception as error:  # the Rust binding raises bare Exception
            raise FailedPrecondition(f"The tokenizer description is not usable: {error}") from error
        self._plain.encode_special_tokens = True
        self._source = source
        self.eos_ids = tuple(eos_ids)

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json`; a missing or malformed file is refused by name."""
        try:
            return cls(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise FailedPrecondition(f"The tokenizer {path} cannot be read: {error}") from error

    @classmethod
    def from_gguf(cls, path: Path) -> Tokenizer:
        """Build from the `tokenizer.ggml.*` metadata of a GGUF file (gpt2 model, smollm split)."""
        return cls(tokenizer_json_of_gguf(path))

    def save(self, path: Path) -> None:
        """Write the `tokenizer.json` this tokenizer was built from."""
        path.write_text(self._source, encoding="utf-8")

    @property
    def source(self) -> str:
        """The `tokenizer.json` text, as grammar engines want it."""
        return self._source

    @property
    def vocab_size(self) -> int:
        """How many token ids exist; valid ids are 0 to vocab_size - 1."""
        return int(self._parsing.get_vocab_size(with_added_tokens=True))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which never appear in decoded text."""
        return frozenset(self._parsing.get_added_tokens_decoder())

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What outlives this tokenizer: all that is needed to decode."""
        byte_of_char = _byte_of_char()
        names = {token_id: text for text, token_id in self._parsing.get_vocab().items()}
        texts = [
            b""
            if token_id in self.special_ids
            else bytes(byte_of_char[char] for char in names.get(token_id, ""))
            for token_id in range(self.vocab_size)
        ]
        listed = [names.get(token_id, "") for token_id in range(self.vocab_size)]
        return Vocabulary.of(self._source, self.eos_ids, listed, texts)

    @property
    def vocabulary_digest(self) -> bytes:
        """SHA-256 over the text of every id: equal where token ids mean the same."""
        return self.vocabulary.digest

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token; control tokens have none."""
        return self.vocabulary.token_bytes(token_id)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of a finished answer; invalid UTF-8 becomes the replacement character."""
        return self.vocabulary.decode(token_ids)

    def encode(self, text: str) -> list[int]:
        """Return the ids of caller text; spelled-out special tokens stay ordinary text."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, prompt: Iterable[Segment]) -> list[int]:
        """Return the ids of a prompt; special segments may contain special tokens."""
        ids: list[int] = []
        for segment in prompt:
            tokenizer = self._parsing if segment.is_special else self._plain
            ids.extend(tokenizer.encode(segment.text, add_special_tokens=False).ids)
        return ids

    def special_id(self, text: str) -> int:
        """Return the id of a special token; one the vocabulary lacks is refused by name."""
        token_id = self._parsing.token_to_id(text)
        if token_id is None or token_id not in self.special_ids:
            raise FailedPrecondition(f"The tokenizer has no special token {text!r}.")
        return int(token_id)


def tokenizer_json_of_gguf(path: Path) -> str:
    """Translate GGUF tokenizer metadata into the text of a `tokenizer.json`."""
    keys = [f"tokenizer.ggml.{key}" for key in ("model", "pre", "tokens", "token_type", "merges")]
    metadata = parse_header(path.name, map_file(path), wanted=keys).metadata
    absent = [key for key in keys if key not in metadata]
    if absent:
        raise FailedPrecondition(f"{path} carries no tokenizer: it has no {absent[0]}.")
    *kind, texts, types, merges = (metadata[key] for key in keys)
    if kind != ["gpt2", "smollm"]:
        named = "/".join(map(str, kind))
        raise FailedPrecondition(
            f"{path} names the tokenizer {named}; only gpt2/smollm is supported."
        )
    if not (_is_texts(texts) and _is_texts(merges)):
        raise FailedPrecondition(f"{path} carries no readable tokenizer: it lists no texts.")
    if not isinstance(types, list) or len(types) != len(texts):
        raise FailedPrecondition(f"{path} carries no readable tokenizer: types are missing.")
    kinds = zip(texts, types, strict=True)
    specials = [text for text, token_type in kinds if token_type == _CONTROL_TOKEN_TYPE]
    return _build(texts, merges, specials)


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _build(texts: Sequence[str], merges: Sequence[str], specials: Sequence[str]) -> str:
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    model = models.BPE(
        vocab={text: index for index, text in enumerate(texts)},
        merges=[(left, right) for left, right in pairs],
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in specials]
    )
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))


def _byte_of_char() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE uses for the 256 bytes (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return table
