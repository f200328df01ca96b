"""What one try of an engine has said so far, and what that makes of a transcript; pure."""

from __future__ import annotations

from typing import Final

from services.router.answers import FinishReason, Usage
from services.router.external.asking import call_text
from services.router.external.port import Heard, TokenFacts
from services.router.transcripts import Transcript
from understudy.errors import Unavailable
from understudy.workloads import Verdict

MAX_ANSWER_CHARS: Final = 4 << 20
"""Of text and arguments together, which are held until a call is complete."""
_FINISHES: Final[dict[str, FinishReason]] = {"length": "length"}
"""Engines have words of their own for the rest; all of them mean that the model stopped."""


class EngineAnswer:
    """Collects one stream; `settle` puts it into the transcript of the attempt."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._names: dict[int, str] = {}
        self._arguments: dict[int, list[str]] = {}
        self._tokens: list[TokenFacts] = []
        self._usage: Usage | None = None
        self._finish = ""
        self._is_refusal = False
        self._num_chars = 0
        self._num_events = 0
        self._num_unexplained = 0

    def add(self, heard: Heard) -> None:
        """Take one event; Unavailable for an answer that is too long to be one."""
        self._num_chars += len(heard.text) + sum(len(part.arguments) for part in heard.calls)
        if self._num_chars > MAX_ANSWER_CHARS:
            raise Unavailable(f"The engine's answer has more than {MAX_ANSWER_CHARS} characters.")
        if heard.text or heard.calls:
            self._num_events += 1
            self._num_unexplained += not heard.tokens
        if heard.text:
            self._texts.append(heard.text)
        for part in heard.calls:
            self._names[part.index] = self._names.get(part.index, "") or part.name
            self._arguments.setdefault(part.index, []).append(part.arguments)
        self._tokens.extend(heard.tokens)
        self._usage = heard.usage or self._usage
        self._finish = heard.finish or self._finish
        self._is_refusal |= heard.is_refusal

    @property
    def calls_text(self) -> str:
        """The calls as JSON: the one call there should be, or a list; empty for none."""
        calls = [
            call_text(name, "".join(self._arguments[index]) or "{}")
            for index, name in sorted(self._names.items())
        ]
        return calls[0] if len(calls) == 1 else f"[{','.join(calls)}]" if calls else ""

    @property
    def text(self) -> str:
        """The answer as verifiers read it."""
        return self.calls_text or "".join(self._texts)

    def settle(self, transcript: Transcript, num_prompt_tokens: int) -> None:
        """Put the whole answer down; what the engine did not say becomes a gap."""
        transcript.is_ended = True
        transcript.finish_reason = _FINISHES.get(self._finish, "stop")
        usage = self._count(transcript, num_prompt_tokens)
        transcript.remarks = self._remarks()
        self._settle_margins(transcript, usage.completion_tokens)

    def lose(self, transcript: Transcript, num_prompt_tokens: int) -> None:
        """Put down what a stream that broke had cost; nothing for one that had not begun."""
        if self._num_events:
            self._count(transcript, num_prompt_tokens)

    def _count(self, transcript: Transcript, num_prompt_tokens: int) -> Usage:
        """Take the engine's counts of this try, or those of the router and a gap."""
        transcript.gaps.discard("usage")
        if self._usage is None:
            transcript.gaps.add("usage")
        usage = self._usage or Usage(num_prompt_tokens, self._num_events)
        transcript.reported = usage
        transcript.cached_tokens = usage.cached_prompt_tokens
        transcript.computed_positions += (
            usage.prompt_tokens - usage.cached_prompt_tokens + usage.completion_tokens
        )
        return usage

    def _settle_margins(self, transcript: Transcript, num_tokens: int) -> None:
        """Take margins only where every token has one; the last, the end, may be left out."""
        margins = [token.margin for token in self._tokens if token.margin is not None]
        is_complete = len(margins) == len(self._tokens) and num_tokens - len(margins) in (0, 1)
        if not margins or not is_complete or self._num_unexplained:
            transcript.gaps.add("margins")
            return
        transcript.logprobs = [token.logprob for token in self._tokens]
        transcript.margins = margins
        transcript.mask_losses = [0.0] * len(margins)
        transcript.is_forced = [False] * len(margins)

    def _remarks(self) -> tuple[Verdict, ...]:
        if self._is_refusal:
            return (Verdict("engine", False, "The model refused to answer."),)
        if self._finish == "content_filter":
            return (Verdict("engine", False, "The engine's content filter cut the answer."),)
        return ()
