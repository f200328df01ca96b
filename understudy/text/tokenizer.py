"""Byte-level BPE tokenizer, read from GGUF metadata or a `tokenizer.json`.

Special tokens are recognised only in segments that say so: text that a caller wrote can never
open or close a chat turn, whatever it spells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from understudy.errors import FailedPrecondition

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
    def vocabulary_digest(self) -> bytes:
        """SHA-256 over the text of every id: equal where token ids mean the same."""
        texts = {token_id: text for text, token_id in self._parsing.get_vocab().items()}
        listed = "\0".join(texts.get(token_id, "") for token_id in range(self.vocab_size))
        return hashlib.sha256(listed.encode()).digest()

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which never appear in decoded text."""
        return frozenset(self._parsing.get_added_tokens_decoder())

    @cached_property
    def _bytes_of_token(self) -> tuple[bytes, ...]:
        byte_of_char = _byte_of_char()
        texts = {token_id: text for text, token_id in self._parsing.get_vocab().items()}
        return tuple(
            b""
            if token_id in self.special_ids
            else bytes(byte_of_char[char] for char in texts.get(token_id, ""))
            for token_id in range(self.vocab_size)
        )

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

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token; control tokens have none."""
        return self._bytes_of_token[token_id]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of a finished answer; invalid UTF-8 becomes the replacement character."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def special_id(self, text: str) -> int:
        """Return the id of a special token; one the vocabulary lacks is refused by name."""
        token_id = self._parsing.token_to_id(text)
        if token_id is None or token_id not in self.special_ids:
            raise FailedPrecondition(f"The tokenizer has no special token {text!r}.")
        return int(token_id)


def tokenizer_json_of_gguf(path: Path) -> str:
    """Translate GGUF tokenizer metadata into the text of a `tokenizer.json`."""
    import gguf

    try:
        fields = gguf.GGUFReader(path).fields
        kind = tuple(str(fields[f"tokenizer.ggml.{key}"].contents()) for key in ("model", "pre"))
        texts = [str(text) for text in fields["tokenizer.ggml.tokens"].contents()]
        types = [int(number) for number in fields["tokenizer.ggml.token_type"].contents()]
        merges = [str(merge) for merge in fields["tokenizer.ggml.merges"].contents()]
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise FailedPrecondition(f"{path} carries no readable tokenizer: {error!r}") from error
    if kind != ("gpt2", "smollm"):
        raise FailedPrecondition(
            f"{path} names the tokenizer {'/'.join(kind)}; only gpt2/smollm is supported."
        )
    kinds = zip(texts, types, strict=True)
    specials = [text for text, token_type in kinds if token_type == _CONTROL_TOKEN_TYPE]
    return _build(texts, merges, specials)


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
