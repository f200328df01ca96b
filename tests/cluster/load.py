"""A steady load: SDK streams that follow one another, each with everything that came of it."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from tests.cluster.kube import wait_until
from understudy import Client
from understudy.client.results import Delta, Finished
from understudy.errors import UnderstudyError
from understudy.workloads import find_workload
from understudy.workloads.snips.dataset import load_split

TIMEOUT_S: Final = 300.0
MAX_TOKENS: Final = 32
NUM_UTTERANCES: Final = 4
PEAK_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked; while weights stay, each pool has one answer to it."""

    model: str
    text: str
    has_tools: bool
    max_tokens: int = MAX_TOKENS


@dataclass(frozen=True, slots=True)
class Told:
    """One stream from its request to its end."""

    question: Question
    pool: str
    answer: str
    num_tokens: int
    gap_s: float
    """Longest time without an event, the wait for the first one included."""
    trace_id: str
    began_s: float
    """When it was asked, by the monotonic clock."""
    stream: int = 0
    """Which of the streams of a load."""


def questions() -> tuple[Question, ...]:
    """Return utterances that the SLM answers or escalates, between texts of the LLM alone."""
    rows = load_split("dev")[:NUM_UTTERANCES]
    utterances = [Question("auto", row.text, has_tools=True) for row in rows]
    texts = ("Tell me of a lighthouse and its keeper.", "Why is the sky blue?")
    return (*utterances, *(Question("llm", text, has_tools=False) for text in texts))


def peak_questions() -> tuple[Question, ...]:
    """Return what keeps the SLM alone busy for long: texts of its own, without tools."""
    rows = load_split("dev")[:NUM_UTTERANCES]
    return tuple(Question("slm", row.text, has_tools=False, max_tokens=PEAK_TOKENS) for row in rows)


@dataclass
class Load:
    """Streams that run, and those that ended."""

    address: str
    api_key: str
    questions: Sequence[Question] = field(default_factory=questions)
    told: list[Told] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _streams: list[Future[None]] = field(default_factory=list)
    _num_kept: int = 0
    _is_over: threading.Event = field(default_factory=threading.Event)

    def start(self, pool: ThreadPoolExecutor, num_streams: int) -> None:
        """Start streams, each at another question."""
        step = max(len(self.questions) // num_streams, 1)
        self._num_kept = num_streams
        self._streams = [
            pool.submit(self._work, index, index * step) for index in range(num_streams)
        ]

    def keep(self, num_streams: int) -> None:
        """Let all streams but so many end with the answer that they are at."""
        self._num_kept = num_streams
        self._streams = self._streams[:num_streams]

    def end(self) -> None:
        """Ask nothing more; what runs is read to its end."""
        self._is_over.set()

    def go_on(self) -> None:
        """Wait until every stream asked something and had its answer, and so had every question."""
        start, began_s = len(self.told), time.monotonic()

        def is_reached() -> bool:
            self._check()
            told = [one for one in self.told[start:] if one.began_s >= began_s]
            streams, asked = {one.stream for one in told}, {one.question for one in told}
            is_whole = streams >= set(range(len(self._streams))) and asked == set(self.questions)
            return is_whole or bool(self.errors)

        wait_until(is_reached, "every stream and question to go on", TIMEOUT_S)

    def wait_for(self, num_streams: int) -> None:
        """Wait until so many more streams have ended."""
        until = self._num_ended() + num_streams

        def is_reached() -> bool:
            self._check()
            return self._num_ended() >= until

        wait_until(is_reached, "streams to end", TIMEOUT_S)

    def changed(self) -> dict[tuple[Question, str], set[tuple[str, int]]]:
        """Return what a pool answered in several ways, with the number of tokens of each."""
        found: dict[tuple[Question, str], set[tuple[str, int]]] = {}
        for one in list(self.told):
            found.setdefault((one.question, one.pool), set()).add((one.answer, one.num_tokens))
        return {asked: answers for asked, answers in found.items() if len(answers) > 1}

    def longest_gap_s(self, start: int = 0) -> float:
        """Return the longest time that a stream stood still, of those that ended since."""
        return max(one.gap_s for one in self.told[start:])

    def _check(self) -> None:
        for stream in self._streams:
            if stream.done():
                stream.result()

    def _num_ended(self) -> int:
        return len(self.told) + len(self.errors)

    def _work(self, stream: int, turn: int) -> None:
        with Client(self.address, api_key=self.api_key, timeout_s=TIMEOUT_S) as client:
            while not self._is_over.is_set() and stream < self._num_kept:
                question = self.questions[turn % len(self.questions)]
                turn += 1
                try:
                    self.told.append(ask(client, question, stream))
                except UnderstudyError as error:
                    self.errors.append(f"{question.model}: {type(error).__name__}: {error}")


def ask(client: Client, question: Question, stream_number: int = 0) -> Told:
    """Read one stream to its end."""
    messages = [{"role": "user", "content": question.text}]
    tools = find_workload("snips").tools if question.has_tools else ()
    began_s = time.monotonic()
    gap_s, last_s, pieces = 0.0, began_s, []
    finished: Finished | None = None
    with client.generate(
        messages=messages, model=question.model, tools=tools, max_tokens=question.max_tokens
    ) as stream:
        for event in stream:
            now_s = time.monotonic()
            gap_s, last_s = max(gap_s, now_s - last_s), now_s
            if isinstance(event, Delta):
                pieces.append(event.text)
                pieces += [f"{call.name}{call.arguments_json}" for call in event.tool_calls]
            elif isinstance(event, Finished):
                finished = event
    assert finished is not None
    return Told(
        question,
        finished.decision.pool,
        "".join(pieces),
        finished.usage.completion_tokens,
        gap_s,
        finished.decision.trace_id,
        began_s,
        stream_number,
    )


@contextmanager
def steady_load(
    address: str, api_key: str, num_streams: int, asked: Sequence[Question] = ()
) -> Iterator[Load]:
    """Keep so many streams running for as long as the block, then read them to their end."""
    load = Load(address, api_key, asked or questions())
    with ThreadPoolExecutor(num_streams) as pool:
        load.start(pool, num_streams)
        try:
            yield load
        finally:
            load.end()
