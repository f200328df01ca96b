"""The Triton server's gRPC API, as far as an expert worker needs it."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import grpc
import torch
from torch import Tensor
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.experts.holdings import Holdings
from services.experts.shared_memory import ALIGNMENT, SharedRegion
from understudy.errors import FailedPrecondition, Internal, Unavailable, UnderstudyError
from understudy.exchange.frame import MAX_MESSAGE_BYTES, Header
from understudy.exchange.tensors import Request, tensor_view
from understudy.rpc import WITHOUT_POLICY, from_rpc_error, open_sync_channel
from understudy.rpc.traces import TRACEPARENT_KEY

_OPTIONS: Final = (*WITHOUT_POLICY, ("grpc.keepalive_time_ms", 2**31 - 1))
"""No pings: the server ends connections that ping, and the canary asks every second anyway."""
_TYPES: Final = {"FP32": torch.float32, "INT64": torch.int64}
_NAMES: Final = {dtype: name for name, dtype in _TYPES.items()}
MIN_SHARED_BYTES: Final = 64 * 1024
"""Below it, telling the server where the tensors lie takes as long as sending them."""
REGISTER_TIMEOUT_S: Final = 2.0
log = logging.getLogger(__name__)

Named = Sequence[tuple[str, Tensor]]


class TritonModel:
    """One model on one server that answers with one tensor. Safe to use from several threads."""

    def __init__(self, address: str, name: str) -> None:
        self.address, self.name = address, name
        self._channel = open_sync_channel(address, options=_OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def infer(self, tensors: Named, *, timeout_s: float, traceparent: str = "") -> Tensor:
        """Send the tensors and return the answer.

        Raises what Triton answered, DeadlineExceeded after `timeout_s`, or Internal for an answer
        that is no tensor.
        """
        request = service_pb2.ModelInferRequest(
            model_name=self.name,
            inputs=[_described(name, tensor) for name, tensor in tensors],
            raw_input_contents=[bytes(tensor_view(tensor)) for _, tensor in tensors],
        )
        return _answer(self.call(request, timeout_s, traceparent))

    def call(
        self, request: object, timeout_s: float, traceparent: str
    ) -> "service_pb2.ModelInferResponse":
        """Send a request as it is. Raises what Triton answered."""
        metadata = ((TRACEPARENT_KEY, traceparent),) if traceparent else ()
        with failures():
            return self.stub.ModelInfer(request, timeout=timeout_s, metadata=metadata)


class SharedCalls:
    """Calls of a model through a region that the server maps; one at a time."""

    def __init__(self, model: TritonModel, size_bytes: int = 2 * MAX_MESSAGE_BYTES) -> None:
        self._model, self._size_bytes = model, size_bytes
        self._region: SharedRegion | None = None
        self._is_refused = False
        self._lock = threading.Lock()

    def close(self) -> None:
        """Have the server forget the region, and remove it."""
        if self._region is not None:
            self._forget(self._region)

    def infer(
        self,
        tensors: Named,
        shape: Sequence[int],
        output: str,
        *,
        timeout_s: float,
        traceparent: str,
    ) -> Tensor | None:
        """Return the answer of `shape`; None where the call must go over the wire.

        Raises what Triton answered; the region is registered anew for the next call then.
        """
        sizes = [tensor.numel() * tensor.element_size() for _, tensor in tensors]
        answer_bytes = 4 * torch.Size(shape).numel()
        total = sum(sizes) + answer_bytes + ALIGNMENT * (len(sizes) + 1)
        if self._is_refused or sum(sizes) < MIN_SHARED_BYTES or total > self._size_bytes:
            return None
        if not self._lock.acquire(blocking=False):
            return None
        try:
            region = self._registered()
            if region is None:
                return None
            return self._ask(region, tensors, shape, output, timeout_s, traceparent)
        finally:
            self._lock.release()

    def _ask(
        self,
        region: SharedRegion,
        tensors: Named,
        shape: Sequence[int],
        output: str,
        timeout_s: float,
        traceparent: str,
    ) -> Tensor:
        places = region.write([tensor for _, tensor in tensors])
        end = sum(places[-1])
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        request = service_pb2.ModelInferRequest(model_name=self._model.name)
        for (name, tensor), place in zip(tensors, places, strict=True):
            _place(request.inputs.add(), region, *place).MergeFrom(_described(name, tensor))
        answer_bytes = 4 * torch.Size(shape).numel()
        _place(request.outputs.add(name=output), region, offset, answer_bytes)
        try:
            response = self._model.call(request, timeout_s, traceparent)
        except UnderstudyError:
            # A late answer may still be written: this memory is not used again.
            self._forget(region)
            raise
        if [list(tensor.shape) for tensor in response.outputs] != [list(shape)]:
            raise Internal("Triton answered with a tensor of another shape.")
        return region.read(offset, shape, torch.float32)

    def _registered(self) -> SharedRegion | None:
        if self._region is not None:
            return self._region
        try:
            region = SharedRegion(self._size_bytes)
        except OSError as error:
            self._refuse(f"the host has no room for it ({error.strerror})")
            return None
        asked = service_pb2.SystemSharedMemoryRegisterRequest(
            name=region.name, key=f"/{region.name}", byte_size=region.size_bytes
        )
        try:
            with failures():
                self._model.stub.SystemSharedMemoryRegister(asked, timeout=REGISTER_TIMEOUT_S)
        except Unavailable:
            region.close()
            raise
        except UnderstudyError as error:
            region.close()
            self._refuse(error.message)
            return None
        region.unlink()
        self._region = region
        return region

    def _refuse(self, reason: str) -> None:
        self._is_refused = True
        log.warning("Tensors go to Triton over the wire, not in shared memory: %s", reason)

    def _forget(self, region: SharedRegion) -> None:
        self._region = None
        asked = service_pb2.SystemSharedMemoryUnregisterRequest(name=region.name)
        try:
            self._model.stub.SystemSharedMemoryUnregister(asked, timeout=REGISTER_TIMEOUT_S)
        except grpc.RpcError:
            log.debug("Triton is away and forgets the region %s by itself.", region.name)
        region.close()


class TritonShards:
    """The feed-forward shards of one package: what an expert worker asks of Triton."""

    def __init__(self, address: str, model: str, holdings: Holdings, *, is_local: bool) -> None:
        """Ask for `model`, which must have the layers and shards of `holdings`.

        A local server shares this host's memory: large tensors lie there.
        """
        self._model, self._holdings = TritonModel(address, model), holdings
        self._shared = SharedCalls(self._model) if is_local else None

    def close(self) -> None:
        """Give back what is shared and hang up."""
        if self._shared is not None:
            self._shared.close()
        self._model.close()

    def compute(
        self, header: Header, request: Request, *, timeout_s: float, traceparent: str
    ) -> Tensor:
        """Return the sum (T, D) of the request's shards.

        Raises what Triton answered, DeadlineExceeded after `timeout_s`, or Internal for an answer
        of another shape.
        """
        place = torch.tensor([header.layer, header.first_shard, header.num_shards])
        tensors = [("place", place), ("hidden", request.hidden)]
        if request.expert_ids is not None and request.weights is not None:
            tensors += [("expert_ids", request.expert_ids), ("gate_weights", request.weights)]
        shape = (header.num_tokens, header.hidden_size)
        total: Tensor | None = None
        if self._shared is not None:
            total = self._shared.infer(
                tensors, shape, "total", timeout_s=timeout_s, traceparent=traceparent
            )
        if total is None:
            total = self._model.infer(tensors, timeout_s=timeout_s, traceparent=traceparent)
        if total.shape != shape or total.dtype != torch.float32:
            raise Internal(f"Triton answered with {tuple(total.shape)}, no sum of {shape}.")
        return total

    def is_live(self, timeout_s: float) -> bool:
        """Whether the server answers, whatever its models do."""
        asked = service_pb2.ServerLiveRequest()
        try:
            return bool(self._model.stub.ServerLive(asked, timeout=timeout_s).live)
        except grpc.RpcError:
            return False

    def reload(self, timeout_s: float) -> None:
        """Unload the model where it is loaded, load it, and check that it is of these weights.

        Raises FailedPrecondition naming what does not fit; Unavailable with what Triton says.
        """
        name, stub = self._model.name, self._model.stub
        unload = service_pb2.RepositoryModelUnloadRequest(model_name=name)
        load = service_pb2.RepositoryModelLoadRequest(model_name=name)
        try:
            with failures():
                ready = stub.ModelReady(service_pb2.ModelReadyRequest(name=name), timeout=timeout_s)
                if ready.ready:
                    stub.RepositoryModelUnload(unload, timeout=timeout_s)
                stub.RepositoryModelLoad(load, timeout=timeout_s)
        except UnderstudyError as error:
            where = f"Triton at {self._model.address}"
            raise Unavailable(f"{where} cannot load {name}: {error.message}") from error
        self.check(timeout_s)

    def check(self, timeout_s: float) -> None:
        """Raise FailedPrecondition naming the digests, layers or shards that do not match."""
        asked = service_pb2.ModelConfigRequest(name=self._model.name)
        with failures():
            config = self._model.stub.ModelConfig(asked, timeout=timeout_s).config
        theirs = {key: value.string_value for key, value in config.parameters.items()}
        which, wanted = (
            f"The model {self._model.name} of Triton at {self._model.address}",
            self._holdings,
        )
        digest = theirs.get("config_digest", "")
        if digest != wanted.values_digest:
            raise FailedPrecondition(
                f"{which} has the config digest {digest[:12] or '(none)'}, this worker"
                f" {wanted.values_digest[:12]}; package the same weights."
            )
        for what, ids in (("layers", wanted.layers), ("shards", wanted.shards)):
            missing = set(map(str, ids)).difference(theirs.get(what, "").split(","))
            if missing:
                raise FailedPrecondition(
                    f"{which} lacks {what} {', '.join(sorted(missing, key=int))}, which this"
                    " worker holds; package them too."
                )


@contextmanager
def failures() -> Iterator[None]:
    """Raise what a failed call says in our own words."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _described(name: str, tensor: Tensor) -> "service_pb2.ModelInferRequest.InferInputTensor":
    return service_pb2.ModelInferRequest.InferInputTensor(
        name=name, datatype=_NAMES[tensor.dtype], shape=tensor.shape
    )


def _place(message, region: SharedRegion, offset: int, size_bytes: int):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    message.parameters["shared_memory_region"].string_param = region.name
    message.parameters["shared_memory_byte_size"].int64_param = size_bytes
    message.parameters["shared_memory_offset"].int64_param = offset
    return message


def _answer(response: "service_pb2.ModelInferResponse") -> Tensor:
    outputs, contents = list(response.outputs), list(response.raw_output_contents)
    if len(outputs) != 1 or len(contents) != 1 or outputs[0].datatype not in _TYPES:
        raise Internal("Triton answered with something that is no single tensor.")
    tensor = torch.empty(tuple(outputs[0].shape), dtype=_TYPES[outputs[0].datatype])
    view = tensor_view(tensor)
    if len(view) != len(contents[0]):
        raise Internal(f"Triton answered with {len(contents[0])} bytes for {len(view)}.")
    view[:] = contents[0]
    return tensor
