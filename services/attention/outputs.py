"""What one engine step tells one session; the servicer turns it into a `SessionResponse`."""

from dataclasses import dataclass, field

from services.attention.sequence import FinishReason
from understudy.errors import UnderstudyError


@dataclass(slots=True)
class TokenRun:
    """New tokens of a sequence with their evidence; all lists have the same length.

    `logprobs` and `margins` are under the masked distribution; a forced token left no choice and
    has logprob 0, margin 1 and mask loss 0.
    """

    sequence_id: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    mask_losses: list[float] = field(default_factory=list)
    is_forced: list[bool] = field(default_factory=list)

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


@dataclass(frozen=True, slots=True)
class Finished:
    """A sequence ended well; its blocks are free."""

    sequence_id: int
    reason: FinishReason
    local_cached_tokens: int
    remote_cached_tokens: int
    computed_positions: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A sequence failed; its blocks are free."""

    sequence_id: int
    error: UnderstudyError


@dataclass(slots=True)
class StepOutput:
    """Everything that one step (or one command before it) means to one session."""

    step: int
    tokens: list[TokenRun] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)

    @property
    def ended_ids(self) -> list[int]:
        """Ids of the sequences that will not be heard of again."""
        finished = [end.sequence_id for end in self.finished]
        return finished + [end.sequence_id for end in self.failed]
