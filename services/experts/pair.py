"""One attention worker's stream: bytes in, works out, credits enforced."""

from collections.abc import Callable

from services.experts.worker import ExpertWorker
from understudy.errors import UnderstudyError
from understudy.exchange.frame import (
    Frame,
    FrameStatus,
    FrameType,
    Header,
    decode_frame,
    peek_header,
)
from understudy.exchange.parts import Assembler

_UNKNOWN = Header(type=FrameType.REQUEST, epoch=0, step=0, layer=0, micro_batch=0, lane=0)


class Pair:
    """The worker's end of one stream. Used by one thread; answers may come from others."""

    def __init__(self, worker: ExpertWorker, send: Callable[[list[bytes]], None]) -> None:
        """Admit frames to `worker`; `send` takes the frames of an answer, from any thread."""
        self._worker = worker
        self._send = send
        self._assembler = Assembler(worker.num_credits)
        self._busy: set[int] = set()

    @property
    def num_busy(self) -> int:
        """Lanes whose message is not yet answered."""
        return len(self._busy)

    def receive(self, message: bytes) -> None:
        """Take one frame off the stream; whatever is wrong with it is answered, never raised."""
        try:
            frame = self._assembler.add(decode_frame(message))
            if frame is None:
                return
            if frame.header.type == FrameType.TRACE_END:
                self._worker.end_traces(frame)
                return
        except UnderstudyError as error:
            self._refuse(peek_header(message) or _UNKNOWN, FrameStatus.MALFORMED, error.message)
            return
        self._admit(frame)

    def _admit(self, frame: Frame) -> None:
        header = frame.header
        if header.type != FrameType.REQUEST:
            self._refuse(header, FrameStatus.MALFORMED, "Only requests come this way, not replies.")
            return
        if header.lane >= self._worker.num_credits or header.lane in self._busy:
            self._refuse(
                header,
                FrameStatus.NO_CREDIT,
                f"Lane {header.lane} is busy or beyond the {self._worker.num_credits} granted.",
            )
            return
        self._busy.add(header.lane)
        self._worker.admit(frame, lambda frames: self._answer(header.lane, frames))

    def _answer(self, lane: int, frames: list[bytes]) -> None:
        # The lane is free before its answer leaves, so that the next request finds it free.
        self._busy.discard(lane)
        self._send(frames)

    def _refuse(self, header: Header, status: FrameStatus, sentence: str) -> None:
        # A broken header may state a type or dtype that no reply could carry.
        header = header._replace(dtype=_UNKNOWN.dtype, num_choices=0)
        self._send(self._worker.refuse(header, status, sentence))
