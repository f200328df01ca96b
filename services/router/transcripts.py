"""What an attempt has produced so far, over all workers that it was placed on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from services.router.answers import FinishReason, Gap, Usage
from services.router.pools import Tokens
from understudy.evidence import Evidence
from understudy.workloads import Verdict


@dataclass(slots=True)
class Transcript:
    """What an attempt has produced so far; `ids` starts with tokens committed before a resume."""

    ids: list[int]
    started_s: float
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    mask_losses: list[float] = field(default_factory=list)
    is_forced: list[bool] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    cached_tokens: int = 0
    computed_positions: int = 0
    model: str = ""
    worker: str = ""
    num_replacements: int = 0
    is_ended: bool = False
    """Whether the worker said that the sequence is complete."""
    first_token_s: float | None = None
    """When the first token came, of the last try."""
    on_first_token: Callable[[], None] | None = None
    """Called at the first token of the attempt, once."""
    held_s: float = 0.0
    """Seconds waited for a worker while the pool had none."""
    reported: Usage | None = None
    """What an external engine counted; its tokens are not known here."""
    lost: Usage = field(default_factory=Usage)
    """What external tries that broke midway had read and written, all of it to be done again."""
    gaps: set[Gap] = field(default_factory=set)
    """What an external engine did not give."""
    remarks: tuple[Verdict, ...] = ()
    """What an external engine said against its own answer."""

    def add(self, tokens: Tokens) -> None:
        """Append new tokens."""
        if tokens.ids:
            self.note_token()
        self.ids.extend(tokens.ids)
        self.logprobs.extend(tokens.logprobs)
        self.margins.extend(tokens.margins)
        self.mask_losses.extend(tokens.mask_losses)
        self.is_forced.extend(tokens.is_forced)

    def note_token(self) -> None:
        """Take the time at which the first token came."""
        if self.first_token_s is not None:
            return
        self.first_token_s = time.monotonic()
        told, self.on_first_token = self.on_first_token, None
        if told is not None:
            told()

    def begin_again(self) -> None:
        """Put what a broken external try said aside; nothing of it is continued."""
        said = self.reported or Usage()
        self.lost = Usage(
            self.lost.prompt_tokens + said.prompt_tokens,
            self.lost.completion_tokens + said.completion_tokens,
            self.lost.cached_prompt_tokens + said.cached_prompt_tokens,
        )
        self.reported = Usage()
        self.first_token_s = None

    @property
    def has_begun(self) -> bool:
        """Whether a model wrote anything, be it lost."""
        return bool(self.ids) or self.first_token_s is not None or self.lost != Usage()

    def evidence(self) -> Evidence:
        """Return what the tokens say about the answer."""
        return Evidence(
            self.logprobs,
            self.margins,
            self.mask_losses,
            self.is_forced,
            is_finished=self.finish_reason == "stop",
        )

    def usage(self, num_prompt_tokens: int) -> Usage:
        """Return the token counts: an engine's own, or those of the tokens."""
        if self.reported is not None:
            return self.reported
        cached = min(self.cached_tokens, num_prompt_tokens)
        return Usage(num_prompt_tokens, len(self.ids), cached)

    @property
    def duration_s(self) -> float:
        """Seconds since the attempt began."""
        return time.monotonic() - self.started_s

    @property
    def time_to_first_token_s(self) -> float | None:
        """Seconds from the beginning to the first token; None while there is none."""
        return None if self.first_token_s is None else self.first_token_s - self.started_s

    @property
    def time_per_output_token_s(self) -> float | None:
        """Seconds from the first token until now, for each token after it; None before a second."""
        reported = self.reported
        num_tokens = len(self.is_forced) if reported is None else reported.completion_tokens
        num_after_first = num_tokens - 1
        if self.first_token_s is None or num_after_first < 1:
            return None
        return (time.monotonic() - self.first_token_s) / num_after_first
