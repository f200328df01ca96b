"""Keeps every feed-forward moving over the open streams until it is answered or out of time.

No sockets and no clock of its own; everything runs on one thread (the client's event loop). What
was on a stream that broke, or that a worker refused or left unanswered for too long, goes to
another replica at once. A call that nobody can serve fails as Unavailable when its window closes,
and until then a worker that comes back is used.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from services.attention.dispatch import Assignment, Call, Placement, choose_replicas
from services.attention.observers import StepInterrupted
from understudy.errors import FailedPrecondition, Unavailable, UnderstudyError
from understudy.exchange.frame import Frame, FrameStatus, decode_frame
from understudy.exchange.lanes import Lanes
from understudy.exchange.parts import Assembler, split_message
from understudy.exchange.tensors import read_error, read_reply

STALE_GRACE_S: Final = 1.0
"""How long a refused epoch waits for the new table before going on without it."""
STUCK_S: Final = 1.0
"""How long a feed-forward may take before it counts as stuck although a worker has it."""
US_PER_S: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Flight:
    """An assignment of a call, sent on a lane and not yet answered."""

    call: Call
    assignment: Assignment
    timeout_at_s: float


class Transport(Protocol):
    """An open stream to one expert worker."""

    def send(self, frames: list[bytes]) -> None:
        """Queue frames for writing, in order."""
        ...

    def reset(self) -> None:
        """Close the stream; it is dialled again later."""
        ...


class Link:
    """An open stream: its lanes, what is on them, the parts of replies."""

    def __init__(self, address: str, transport: Transport, num_credits: int) -> None:
        self.address = address
        self.transport = transport
        self.flights: dict[int, Flight] = {}
        self._lanes = Lanes(num_credits)
        self._assembler = Assembler(num_credits)

    @property
    def has_credit(self) -> bool:
        """Whether one more message may be sent."""
        return self._lanes.has_free

    def send(self, flight: Flight, epoch: int, timeout_s: float) -> None:
        """Send a flight's message on a free lane. Raises FailedPrecondition above 16 MiB."""
        header = flight.call.header._replace(
            epoch=epoch,
            first_shard=flight.assignment.first_shard,
            num_shards=flight.assignment.num_shards,
            remaining_us=int(timeout_s * US_PER_S),
            lane=self._lanes.take(),
        )
        try:
            frames = split_message(header, flight.call.pieces)
        except FailedPrecondition:
            self._lanes.give_back(header.lane)
            raise
        self.flights[header.lane] = flight
        self.transport.send(frames)

    def receive(self, message: bytes) -> tuple[Flight, Frame] | None:
        """Return the flight that a reply ends, None for a part of one.

        Raises FailedPrecondition for a frame that answers nothing in flight.
        """
        frame = self._assembler.add(decode_frame(message))
        if frame is None:
            return None
        header = frame.header
        flight = self.flights.get(header.lane)
        if flight is None or (header.step, header.layer, header.first_shard) != (
            flight.call.header.step,
            flight.call.header.layer,
            flight.assignment.first_shard,
        ):
            raise FailedPrecondition(f"The answer on lane {header.lane} is to no question asked.")
        self._lanes.give_back(header.lane)
        return self.flights.pop(header.lane), frame


class Dispatcher:
    """Matches calls with links."""

    def __init__(
        self, *, clock_s: Callable[[], float], frame_timeout_s: float, retry_window_s: float
    ) -> None:
        self._clock_s = clock_s
        self._frame_timeout_s = frame_timeout_s
        self._retry_window_s = retry_window_s
        self._links: dict[str, Link] = {}
        self._calls: set[Call] = set()
        self._epoch_floor = 0
        self._stale_until_s = 0.0
        self._interrupted_s = -math.inf
        self._waited_s = 0.0
        self._is_spared = False
        self.placement = Placement(0, ())

    @property
    def num_connected(self) -> int:
        """Open streams."""
        return len(self._links)

    def place(self, placement: Placement) -> None:
        """Go by a newer table from now on."""
        self.placement = placement
        self._pump_all(is_retry=False)

    def connected(self, address: str, transport: Transport, num_credits: int) -> Link:
        """Use a stream that was opened to `address`."""
        link = self._links[address] = Link(address, transport, num_credits)
        self._pump_all(is_retry=True)
        return link

    def disconnected(self, link: Link, failure: str) -> None:
        """Forget a stream that is gone; what was on it goes elsewhere."""
        if self._links.get(link.address) is link:
            del self._links[link.address]
        flights, link.flights = link.flights, {}
        for flight in flights.values():
            flight.call.drop(flight.assignment, f"{link.address}: {failure}", is_tried=False)
        self._pump_all(is_retry=False)

    def covers(self, num_layers: int, num_shards: int) -> bool:
        """Whether every shard of every layer has a connected replica."""

        def num_covered(layer: int) -> int:
            assignments = choose_replicas(
                self.placement,
                layer,
                range(num_shards),
                lambda _, address: address in self._links,
            )
            return sum(assignment.num_shards for assignment in assignments)

        return all(num_covered(layer) == num_shards for layer in range(num_layers))

    def start(self, call: Call) -> None:
        """Send a new call's shards to their workers; its window opens now.

        It opened earlier for a call that takes the place of one that was interrupted.
        """
        call.started_s = self._clock_s()
        call.deadline_s = call.started_s + max(0.0, self._retry_window_s - self._waited_s)
        self._calls.add(call)
        self._pump(call, is_retry=False)

    def begin_step(self) -> None:
        """Note that another forward begins; one that follows an interrupted one is the same."""
        self._is_spared = self._clock_s() - self._interrupted_s < STUCK_S
        if not self._is_spared:
            self._waited_s = 0.0

    def interrupt(self) -> None:
        """Give up a forward that is stuck, so that the thread that waits for it can do other work.

        Stuck is what no connected worker holds, and what has taken `STUCK_S`; the latter is not
        interrupted twice in a row, so that workers which are merely slow get through.
        """
        now = self._clock_s()
        if not any(self._is_stuck(call, now) for call in self._calls):
            return
        self._waited_s += now - min(call.started_s for call in self._calls)
        self._interrupted_s = now
        calls, self._calls = self._calls, set()
        for call in calls:
            call.fail(StepInterrupted())

    def broadcast(self, frame: bytes) -> None:
        """Send a frame that has no reply to every connected worker."""
        for link in self._links.values():
            link.transport.send([frame])

    def receive(self, link: Link, message: bytes) -> None:
        """Take a frame that came on a link; one that cannot be placed resets the stream."""
        try:
            answered = link.receive(message)
        except UnderstudyError as error:
            self._reset(link, error.message)
            return
        if answered is not None:
            self._settle(*answered)

    def sweep(self) -> None:
        """Notice timeouts, retry what is unassigned, give up what is too late; call it often."""
        now = self._clock_s()
        for link in list(self._links.values()):
            if any(flight.timeout_at_s < now for flight in link.flights.values()):
                self._reset(link, f"no answer within {self._frame_timeout_s:g} s")
        for call in [call for call in self._calls if call.deadline_s < now]:
            self._fail(call, f"within {self._retry_window_s:g} s; last: {call.last_failure}")
        self._pump_all(is_retry=True)

    def close(self) -> None:
        """Fail whatever is in flight."""
        for call in list(self._calls):
            self._fail(call, "because this attention worker is stopping")

    def _settle(self, flight: Flight, frame: Frame) -> None:
        call, assignment, status = flight.call, flight.assignment, frame.header.status
        if status == FrameStatus.OK:
            self._accept(flight, frame)
        else:
            if status == FrameStatus.STALE_EPOCH and frame.header.epoch > self._epoch_floor:
                self._epoch_floor = frame.header.epoch
                self._stale_until_s = self._clock_s() + STALE_GRACE_S
            failure = f"{assignment.address} answered {FrameStatus(status).name}"
            is_tried = status != FrameStatus.STALE_EPOCH
            call.drop(assignment, f"{failure}: {read_error(frame)}", is_tried=is_tried)
        if call.is_done:
            self._calls.discard(call)
            self._waited_s = 0.0
        self._pump_all(is_retry=False)

    def _is_stuck(self, call: Call, now_s: float) -> bool:
        held = choose_replicas(
            self.placement,
            call.header.layer,
            call.unassigned,
            lambda _, address: address in self._links,
        )
        if sum(assignment.num_shards for assignment in held) < len(call.unassigned):
            return True
        return not self._is_spared and now_s - call.started_s >= STUCK_S

    def _accept(self, flight: Flight, frame: Frame) -> None:
        call, assignment = flight.call, flight.assignment
        try:
            _, partial = read_reply(frame)
        except UnderstudyError as error:
            call.drop(assignment, error.message, is_tried=True)
            return
        if partial.shape != (call.header.num_tokens, call.header.hidden_size):
            call.drop(assignment, f"a sum of shape {tuple(partial.shape)}", is_tried=True)
        elif not call.is_done:
            call.accept(assignment, partial)

    def _reset(self, link: Link, failure: str) -> None:
        link.transport.reset()
        self.disconnected(link, failure)

    def _fail(self, call: Call, reason: str) -> None:
        self._calls.discard(call)
        self._waited_s = 0.0
        layer = call.header.layer
        sentence = f"No expert worker computed layer {layer} {reason}."
        call.fail(Unavailable(sentence, {"layer": str(layer)}))

    def _pump_all(self, *, is_retry: bool) -> None:
        for call in [call for call in self._calls if call.unassigned]:
            self._pump(call, is_retry=is_retry)

    def _pump(self, call: Call, *, is_retry: bool) -> None:
        """Send unassigned shards to workers not yet tried; a retry may go where it failed."""
        now = self._clock_s()
        if self.placement.epoch < self._epoch_floor and now < self._stale_until_s:
            return

        def is_usable(shard: int, address: str) -> bool:
            link = self._links.get(address)
            is_untried = is_retry or (shard, address) not in call.tried
            return link is not None and link.has_credit and is_untried

        layer, epoch = call.header.layer, max(self.placement.epoch, self._epoch_floor)
        timeout_s = min(self._frame_timeout_s, max(0.0, call.deadline_s - now))
        for assignment in choose_replicas(self.placement, layer, call.unassigned, is_usable):
            link = self._links[assignment.address]
            if not link.has_credit:  # the assignment before this one took the last
                continue
            call.unassigned.difference_update(assignment.shards)
            try:
                link.send(Flight(call, assignment, now + timeout_s), epoch, timeout_s)
            except UnderstudyError as error:
                self._fail(call, f"because it cannot be sent: {error.message}")
                return
