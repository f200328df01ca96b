"""`Experts` over gRPC: streams to expert workers, and the placement that the controller publishes.

The synchronous gRPC stack on purpose: grpc.aio serves one event loop a process, which is the
servicer's, and the engine thread hands a frame to a stream without passing through a loop. Each
worker has one thread that dials it, reads its stream and dials again; one watches the placement,
one looks for timeouts. All bookkeeping happens in the `Dispatcher` under one lock.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import grpc
from torch import Tensor

from services.attention.clients.streams import ExchangeStream, open_exchange
from services.attention.dispatch import Call, Placement, Replica
from services.attention.links import Dispatcher
from services.attention.observers import TraceSegment
from understudy.api.controller.v1 import controller_pb2, controller_pb2_grpc
from understudy.api.experts.v1 import experts_pb2, experts_pb2_grpc
from understudy.errors import FailedPrecondition, Unavailable, UnderstudyError
from understudy.exchange import traces
from understudy.exchange.frame import VERSION, FrameType, Header, encode_frame
from understudy.exchange.tensors import request_pieces
from understudy.model.config import ModelConfig
from understudy.model.ffn import Gates, PendingHidden
from understudy.rpc import Peers, from_rpc_error, open_sync_channel, plaintext

HELLO_TIMEOUT_S: Final = 5.0
MIN_REDIAL_S: Final = 0.05
MAX_REDIAL_S: Final = 2.0
SWEEP_S: Final = 0.1
JOIN_TIMEOUT_S: Final = 2.0
_log = logging.getLogger(__name__)


class RemoteExperts:
    """The feed-forwards of a model, computed by the expert workers of a pool.

    `submit` and the `StepObserver` methods belong to one thread, the engine's. A worker that dies
    costs the time of asking another one; the sums stay the same, bit by bit.
    """

    def __init__(
        self,
        config: ModelConfig,
        ffn_digest: bytes,
        placement: str,
        pool: str,
        *,
        frame_timeout_s: float = 5.0,
        retry_window_s: float = 10.0,
        peers: Peers = plaintext,
    ) -> None:
        """Serve `config`'s layers by the table of `pool` that the controller at `placement` has.

        A worker that leaves a frame unanswered for `frame_timeout_s` is dropped and dialled anew;
        a feed-forward that nobody computed after `retry_window_s` fails.
        """
        self._config = config
        self._digest = ffn_digest
        self._placement = placement
        self._pool = pool
        self._dispatcher = Dispatcher(
            clock_s=time.monotonic, frame_timeout_s=frame_timeout_s, retry_window_s=retry_window_s
        )
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._peers = peers
        self._controller = open_sync_channel(placement, peer=peers("controller"))
        self._channels: dict[str, grpc.Channel] = {}
        self._threads: list[threading.Thread] = []
        self._failure = "the controller has published no expert worker"
        self._step = 0
        self._micro_batch = -1
        self._layer = -1
        self._traces: tuple[traces.TraceSegment, ...] = ()
        self._deadline_s = math.inf
        self._is_wanted: Callable[[], bool] = lambda: False
        self._on_readiness: Callable[[bool], None] = lambda _: None

    @property
    def is_ready(self) -> bool:
        """Whether every shard of every layer has a connected worker."""
        return self._ready.is_set()

    @property
    def num_connected(self) -> int:
        """Expert workers with an open stream."""
        return self._dispatcher.num_connected

    def start(self, timeout_s: float = 30.0) -> None:
        """Connect, and wait until the pool is complete.

        Raises Unavailable saying what is missing when it is not complete in time.
        """
        self._spawn("experts-placement", self._watch)
        self._spawn("experts-sweep", self._sweep)
        if not self._ready.wait(timeout_s):
            raise Unavailable(
                f"The expert workers of pool {self._pool!r} were not complete within "
                f"{timeout_s:g} s: {self._failure}. Start them and the controller at "
                f"{self._placement}, or serve this model with fused feed-forwards.",
                {"pool": self._pool},
            )

    def serve(self, is_wanted: Callable[[], bool], on_readiness: Callable[[bool], None]) -> None:
        """Compute for an engine: `is_wanted` says whether its thread has something else to do.

        `on_readiness` hears of `is_ready` now and whenever it changes. Both are called on threads
        of this object and must not block.
        """
        with self._lock:
            self._is_wanted, self._on_readiness = is_wanted, on_readiness
            on_readiness(self.is_ready)

    def close(self) -> None:
        """Fail what is in flight and hang up."""
        self._closed.set()
        with self._lock:
            self._dispatcher.close()
            channels = [self._controller, *self._channels.values()]
        for channel in channels:
            channel.close()
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)

    def begin_step(self, step: int, segments: Sequence[TraceSegment], deadline_s: float) -> None:
        """Name the attempts whose rows the next forward computes.

        From the deadline on, and while the engine thread is wanted, it is interrupted when stuck.
        """
        with self._lock:
            self._dispatcher.begin_step()
        self._step, self._layer, self._deadline_s = step, -1, deadline_s
        wired = (
            traces.TraceSegment.from_traceparent(segment.traceparent, segment.num_rows)
            for segment in segments
        )
        self._traces = tuple(segment for segment in wired if segment)[: traces.MAX_SEGMENTS]

    def end_trace(self, traceparent: str) -> None:
        """Let expert workers close the spans of an attempt."""
        segment = traces.TraceSegment.from_traceparent(traceparent, 0)
        if segment is None:
            return
        header = Header(FrameType.TRACE_END, 0, self._step, 0, 0, 0, num_traces=1)
        with self._lock:
            self._dispatcher.broadcast(encode_frame(header, [traces.pack_segments([segment])]))

    def submit(self, layer: int, hidden: Tensor, gates: Gates | None) -> PendingHidden:
        """Send the feed-forward of `hidden` (T, D) to the workers that hold its shards."""
        ids, weights = (None, None) if gates is None else (gates.ids, gates.weights)
        self._micro_batch = self._micro_batch + 1 if layer == self._layer else 0
        self._layer = layer
        header = Header(
            FrameType.REQUEST, 0, self._step, layer, self._micro_batch, 0,
            num_tokens=hidden.shape[0], hidden_size=hidden.shape[1],
            num_choices=0 if ids is None else ids.shape[1], num_traces=len(self._traces),
        )  # fmt: skip
        pieces = request_pieces(self._traces, hidden, ids, weights)
        call = Call(header, pieces, set(range(self._config.num_ffn_shards)))
        with self._lock:
            self._dispatcher.start(call)
            if self._closed.is_set():
                self._dispatcher.close()
        return call

    def _spawn(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _keep_doing(self, what: str, attempt: Callable[[], bool]) -> None:
        """Repeat an attempt until it returns False, with a growing pause after each failure."""
        pause_s, known = MIN_REDIAL_S, ""
        while not self._closed.is_set():
            started_s = time.monotonic()
            try:
                if not attempt():
                    return
                failure = "the stream ended"
            except grpc.RpcError as error:
                failure = from_rpc_error(error).message
            except UnderstudyError as error:
                failure = error.message
            except ValueError:  # what gRPC says of a channel that `close` has closed meanwhile
                if not self._closed.is_set():
                    raise
            if self._closed.is_set():
                return
            self._failure = f"{what}: {failure}"
            if failure != known:
                _log.warning("%s is away: %s", what, failure)
            known = failure
            is_steady = time.monotonic() - started_s > MAX_REDIAL_S
            pause_s = MIN_REDIAL_S if is_steady else min(2 * pause_s, MAX_REDIAL_S)
            self._closed.wait(pause_s)

    def _sweep(self) -> None:
        while not self._closed.wait(SWEEP_S):
            with self._lock:
                if self._is_wanted() or time.monotonic() >= self._deadline_s:
                    self._dispatcher.interrupt()
                self._dispatcher.sweep()

    def _watch(self) -> None:
        request = controller_pb2.WatchPlacementRequest(pool=self._pool)
        stub = controller_pb2_grpc.ControllerServiceStub(self._controller)

        def attempt() -> bool:
            for response in stub.WatchPlacement(request):
                self._place(response.placement)
            return True

        self._keep_doing(f"The controller at {self._placement}", attempt)

    def _place(self, table: controller_pb2.Placement) -> None:
        if not table.replicas:  # nobody to ask: those of the last table can only be better
            self._failure = f"the controller knows no live expert worker of pool {self._pool!r}"
            return
        placement = Placement(table.epoch, tuple(map(self._to_replica, table.replicas)))
        with self._lock:
            self._dispatcher.place(placement)
            addresses = {replica.address for replica in placement.replicas}
            unknown, peer = addresses - {*self._channels}, self._peers("experts")
            new = {address: open_exchange(address, peer) for address in unknown}
            self._channels.update(new)
            self._note_readiness()
        for address, channel in new.items():
            self._spawn(f"experts-{address}", partial(self._keep_connected, address, channel))

    def _to_replica(self, share: controller_pb2.ExpertReplica) -> Replica:
        layers = range(share.first_layer, share.first_layer + share.num_layers)
        ids, preferred = frozenset(share.expert_ids), frozenset(share.preferred_expert_ids)
        return Replica.of(self._config, share.address, layers, ids, preferred)

    def _keep_connected(self, address: str, channel: grpc.Channel) -> None:
        def attempt() -> bool:
            try:
                self._exchange(address, channel)
            except (grpc.RpcError, UnderstudyError):
                if self._is_still_placed(address):
                    raise
                return False
            return self._is_still_placed(address)

        with channel:
            self._keep_doing(f"The expert worker at {address}", attempt)

    def _is_still_placed(self, address: str) -> bool:
        """Say whether to dial again; an address that left the table is forgotten here."""
        with self._lock:
            replicas = self._dispatcher.placement.replicas
            is_placed = any(replica.address == address for replica in replicas)
            if not is_placed:
                del self._channels[address]
            return is_placed

    def _exchange(self, address: str, channel: grpc.Channel) -> None:
        num_credits = self._greet(channel)
        stream = ExchangeStream(channel)
        with self._lock:
            link = self._dispatcher.connected(address, stream, num_credits)
            self._note_readiness()
        _log.info("Connected to the expert worker at %s.", address)
        try:
            for message in stream:
                with self._lock:
                    self._dispatcher.receive(link, message)
        finally:
            with self._lock:
                self._dispatcher.disconnected(link, "the stream ended")
                self._note_readiness()
            stream.reset()

    def _greet(self, channel: grpc.Channel) -> int:
        request = experts_pb2.HelloRequest(frame_version=VERSION, ffn_digest=self._digest)
        hello = experts_pb2_grpc.ExpertsServiceStub(channel).Hello(request, timeout=HELLO_TIMEOUT_S)
        if hello.frame_version != VERSION or hello.hidden_size != self._config.hidden_size:
            raise FailedPrecondition(
                f"The worker speaks frame version {hello.frame_version} and hidden size "
                f"{hello.hidden_size}; this model needs {VERSION} and {self._config.hidden_size}."
            )
        return max(1, hello.credits)

    def _note_readiness(self) -> None:
        was_ready = self.is_ready
        if self._dispatcher.covers(self._config.num_layers, self._config.num_ffn_shards):
            self._ready.set()
        else:
            self._ready.clear()
        if self.is_ready != was_ready and not self._closed.is_set():
            self._on_readiness(self.is_ready)
