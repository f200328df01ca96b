"""Offline answering: many prompts through one model, greedily, under their grammars.

Decides as the attention worker does (forced tokens are not sampled, their keys and values are
computed with the next step), so the evidence it records is the evidence serving will see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from services.distiller.grid import Grid
from understudy.evidence import Evidence
from understudy.grammar import Compiler, GrammarSource
from understudy.grammar.matcher import Matcher, count_allowed
from understudy.model.adapter import Adapter, AdapterBatch, AdapterGroup
from understudy.model.sampling import SamplingParams, sample
from understudy.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the grammar of its answers."""

    prompt_ids: Sequence[int]
    grammar: GrammarSource


@dataclass(slots=True)
class Answered:
    """An answer's tokens with their evidence, and the positions it took to compute."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    mask_losses: list[float] = field(default_factory=list)
    is_forced: list[bool] = field(default_factory=list)
    is_over: bool = False
    is_finished: bool = False
    """Whether it ended by itself rather than at the limit."""
    num_positions: int = 0

    @property
    def evidence(self) -> Evidence:
        """What the answer's tokens say about it."""
        return Evidence(
            self.logprobs, self.margins, self.mask_losses, self.is_forced, self.is_finished
        )

    def add(self, token: int, logprob: float, margin: float, mask_loss: float) -> None:
        """Append a token that was chosen."""
        self._append(token, logprob, margin, mask_loss, is_forced=False)

    def add_forced(self, token: int) -> None:
        """Append a token that the grammar left no alternative to."""
        self._append(token, 0.0, 1.0, 0.0, is_forced=True)

    def _append(
        self, token: int, logprob: float, margin: float, mask_loss: float, *, is_forced: bool
    ) -> None:
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.margins.append(margin)
        self.mask_losses.append(mask_loss)
        self.is_forced.append(is_forced)


@dataclass(slots=True)
class _Running:
    number: int
    matcher: Matcher
    pending: list[int]
    mask: np.ndarray
    answered: Answered


class Answerer:
    """Answers questions with one model, several at a time."""

    def __init__(
        self,
        model: Transformer,
        compiler: Compiler,
        *,
        end_id: int,
        adapter: Adapter | None = None,
        num_places: int = 48,
        max_positions: int = 512,
        max_tokens: int = 192,
    ) -> None:
        self._model, self._compiler, self._end_id = model, compiler, end_id
        self._adapter = None if adapter is None else AdapterBatch([AdapterGroup(adapter)])
        self._num_places, self._max_positions = num_places, max_positions
        self._max_tokens = max_tokens

    @torch.inference_mode()
    def answer(
        self, questions: Sequence[Question], progress: Callable[[int], None]
    ) -> list[Answered]:
        """Answer all questions, in their order; `progress` hears how many are done."""
        grid = Grid(self._model.config, self._num_places, self._max_positions)
        answers: dict[int, Answered] = {}
        running: dict[int, _Running] = {}
        waiting = iter(enumerate(questions))
        while True:
            self._admit(running, waiting, answers)
            if not running:
                return [answers[number] for number in range(len(questions))]
            self._step(grid, running)
            for place in [place for place, one in running.items() if one.answered.is_over]:
                done = running.pop(place)
                answers[done.number] = done.answered
                progress(len(answers))

    def _admit(
        self,
        running: dict[int, _Running],
        waiting: Iterator[tuple[int, Question]],
        answers: dict[int, Answered],
    ) -> None:
        for place in range(self._num_places):
            while place not in running:
                item = next(waiting, None)
                if item is None:
                    return
                number, question = item
                matcher = self._compiler.compile(question.grammar).matcher()
                one = _Running(
                    number, matcher, list(question.prompt_ids), np.zeros(0, np.int32), Answered()
                )
                self._force(one)
                if one.answered.is_over:
                    answers[number] = one.answered
                else:
                    running[place] = one

    def _step(self, grid: Grid, running: dict[int, _Running]) -> None:
        places, active = list(running), list(running.values())
        counts = [len(one.pending) for one in active]
        starts = [one.answered.num_positions for one in active]
        positions = grid.begin(places, starts, counts)
        tokens = torch.tensor([token for one in active for token in one.pending])
        hidden = self._model.forward(tokens, positions, grid, self._adapter)
        last = torch.tensor(counts).cumsum(0) - 1
        sampled = sample(
            self._model.logits(hidden[last]),
            [SamplingParams()] * len(active),
            [0] * len(active),
            [0] * len(active),
            torch.from_numpy(np.stack([one.mask for one in active])),
        )
        for row, one in enumerate(active):
            one.answered.num_positions += counts[row]
            token = int(sampled.tokens[row])
            one.answered.add(
                token,
                float(sampled.logprobs[row]),
                float(sampled.margins[row]),
                float(sampled.mask_losses[row]),
            )
            one.pending = [token]
            self._take(one, token)
            self._force(one)

    def _take(self, one: _Running, token: int) -> None:
        if token == self._end_id:
            one.answered.is_over = one.answered.is_finished = True
        else:
            one.matcher.accept(token)

    def _force(self, one: _Running) -> None:
        while not one.answered.is_over:
            one.answered.is_finished = one.matcher.is_stopped
            if one.matcher.is_stopped or len(one.answered.token_ids) >= self._max_tokens:
                one.answered.is_over = True
                return
            forced = one.matcher.forced() or self._only(one)
            if not forced:
                return
            for token in forced:
                one.answered.add_forced(token)
                one.pending.append(token)
                self._take(one, token)

    def _only(self, one: _Running) -> list[int]:
        one.mask = one.matcher.mask()
        if count_allowed(one.mask) != 1:
            return []
        word = int(np.flatnonzero(one.mask)[0])
        return [word * 32 + (int(one.mask[word]) & 0xFFFFFFFF).bit_length() - 1]
