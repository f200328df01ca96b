"""What a token means for its output: ends, stop texts, forced tokens."""

from dataclasses import replace

import numpy as np
import pytest

from services.attention.decoding import Decoding, StopWatch, only_token
from services.attention.outputs import TokenRun
from services.attention.sequence import FinishReason, PackedMask, Sequence
from tests.unit.attention.parts import EOS, submission
from understudy.errors import InvalidArgument, UnsupportedSchema


class Script:
    """A matcher over one fixed output; at `free` positions another token is allowed as well."""

    def __init__(self, tokens: list[int], free: set[int], forced_runs: bool = True) -> None:
        self.tokens, self.free, self.position = tokens, free, 0
        self.forced_runs = forced_runs

    @property
    def is_stopped(self) -> bool:
        return self.position == len(self.tokens)

    def mask(self) -> PackedMask:
        mask = np.zeros(4, dtype=np.int32)
        allowed = [self.tokens[self.position]]
        if self.position in self.free:
            allowed.append(99)
        for token in allowed:
            mask.view(np.uint32)[token // 32] |= np.uint32(1 << (token % 32))
        return mask

    def accept(self, token: int) -> None:
        if token != self.tokens[self.position]:
            raise InvalidArgument(f"Token {token} does not fit.")
        self.position += 1

    def forced(self) -> list[int]:
        if not self.forced_runs:
            return []
        end = self.position
        while end < len(self.tokens) and end not in self.free:
            end += 1
        return self.tokens[self.position : end]


def begin(matcher: Script | None = None, **fields: object) -> tuple[Decoding, Sequence]:
    decoding = Decoding([EOS], max_context=32)
    return decoding, Sequence(replace(submission(**fields), matcher=matcher), 0)


def append(decoding: Decoding, sequence: Sequence, token: int) -> tuple[TokenRun, object]:
    run = TokenRun(1)
    reason = decoding.append(sequence, run, token, -0.5, 0.25, 0.125)
    return run, reason


def test_token_joins_the_output_with_its_evidence():
    decoding, sequence = begin()
    run, reason = append(decoding, sequence, 9)
    assert reason is None
    assert sequence.tokens == [5, 6, 7, 9]
    assert (run.token_ids, run.logprobs, run.margins) == ([9], [-0.5], [0.25])
    assert (run.mask_losses, run.is_forced) == ([0.125], [False])


def test_end_of_sequence_ends_the_output_unless_ignored():
    decoding, sequence = begin()
    run, reason = append(decoding, sequence, EOS)
    assert (run.token_ids, reason) == ([EOS], FinishReason.STOP)
    decoding, sequence = begin(ignore_eos=True)
    assert append(decoding, sequence, EOS)[1] is None


def test_max_tokens_count_committed_ones():
    decoding, sequence = begin(max_tokens=3, num_committed=2)
    assert append(decoding, sequence, 9)[1] is FinishReason.LENGTH


def test_exhausted_submission_ends_before_anything_is_computed():
    decoding, sequence = begin(max_tokens=2, num_committed=2)
    run = TokenRun(1)
    assert decoding.begin(sequence, run) is FinishReason.LENGTH
    assert run.token_ids == []


def test_context_bounds_the_output():
    decoding, sequence = begin(tokens=range(3, 34), max_tokens=32)
    assert append(decoding, sequence, 9)[1] is FinishReason.LENGTH


@pytest.mark.parametrize("forced_runs", [True, False])
def test_forced_tokens_follow_unsampled_with_margin_one(forced_runs: bool):
    matcher = Script([10, 11, 12, 13, 14], free={1, 4}, forced_runs=forced_runs)
    decoding, sequence = begin(matcher)
    run = TokenRun(1)
    assert decoding.begin(sequence, run) is None
    assert (run.token_ids, run.is_forced) == ([10], [True])
    run, reason = append(decoding, sequence, 11)
    assert reason is None
    assert run.token_ids == [11, 12, 13]
    assert run.is_forced == [False, True, True]
    assert run.margins == [0.25, 1.0, 1.0]
    assert run.logprobs == [-0.5, 0.0, 0.0]
    assert run.mask_losses == [0.125, 0.0, 0.0]
    assert sequence.mask is not None
    run, reason = append(decoding, sequence, 14)
    assert reason is FinishReason.STOP


def test_wholly_forced_output_ends_without_a_forward():
    decoding, sequence = begin(Script([10, 11], free=set()))
    run = TokenRun(1)
    assert decoding.begin(sequence, run) is FinishReason.STOP
    assert run.token_ids == [10, 11]


def test_limit_cuts_a_forced_run():
    decoding, sequence = begin(Script([10, 11, 12], free=set()), max_tokens=2)
    run = TokenRun(1)
    assert decoding.begin(sequence, run) is FinishReason.LENGTH
    assert run.token_ids == [10, 11]


def test_refused_token_fails_its_sequence():
    decoding, sequence = begin(Script([10, 11], free={0, 1}))
    decoding.begin(sequence, TokenRun(1))
    with pytest.raises(InvalidArgument, match="does not fit"):
        append(decoding, sequence, 98)


@pytest.mark.parametrize("token", [0, 31, 32, 63, 95])
def test_mask_with_one_bit_names_its_token(token: int):
    mask = np.zeros(3, dtype=np.int32)
    mask.view(np.uint32)[token // 32] = np.uint32(1 << (token % 32))
    assert only_token(mask) == token
    mask.view(np.uint32)[1] |= np.uint32(1 << 7)
    assert only_token(mask) is None


def test_dead_end_of_a_grammar_is_named():
    with pytest.raises(UnsupportedSchema, match="allows no token"):
        only_token(np.zeros(3, dtype=np.int32))


def test_stop_text_is_found_across_tokens():
    texts = {1: b"ab", 2: b"c\n", 3: b"\nEN", 4: b"D.", 5: b""}
    watch = StopWatch(["\n\nEND", "zz"], texts.__getitem__)
    assert [watch.push(token) for token in (1, 2, 5, 3, 4)] == [False, False, False, False, True]


def test_stop_text_ends_the_output():
    decoding = Decoding([EOS], max_context=32)
    watch = StopWatch(["x"], lambda token: b"x" if token == 9 else b"y")
    sequence = Sequence(replace(submission(), stop_texts=watch), 0)
    assert append(decoding, sequence, 8)[1] is None
    assert append(decoding, sequence, 9)[1] is FinishReason.STOP
