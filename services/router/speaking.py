"""What an answer needs of a running attempt, native or external: its text, and its transcript."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from services.router.attempts import AttemptRun
from services.router.texts import TextStream
from services.router.transcripts import Transcript
from understudy.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that may be shown, possibly empty, and the tokens behind it where they are known."""

    text: str
    ids: tuple[int, ...] = ()


class Speaker(Protocol):
    """A running attempt: take `complete` or `pieces`, once, then read the transcript."""

    @property
    def transcript(self) -> Transcript:
        """What is known so far."""

    async def complete(self) -> str:
        """Return the whole text of an answer of which nothing is shown."""

    def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield an answer that is shown as it comes."""


class NativeSpeaker:
    """An attempt on attention workers: tokens become text here."""

    def __init__(self, run: AttemptRun, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._run = run
        self._texts = TextStream(tokenizer, stops)

    @property
    def transcript(self) -> Transcript:
        """What is known so far."""
        return self._run.transcript

    async def complete(self) -> str:
        """Return the whole text."""
        await self._run.complete()
        return self._texts.push(self.transcript.ids) + self._texts.finish()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield text with the tokens behind it; of tokens committed earlier nothing is repeated."""
        self._texts.push(self.transcript.ids)
        async with aclosing(self._run.stream()) as stream:
            async for tokens in stream:
                yield Piece(self._texts.push(tokens.ids), tokens.ids)
        yield Piece(self._texts.finish())
