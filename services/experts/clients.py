"""The Triton server's gRPC API, as far as an expert worker needs it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import grpc
import torch
from torch import Tensor
from tritonclient.grpc import service_pb2, service_pb2_grpc

from understudy.errors import FailedPrecondition, Internal, Unavailable, UnderstudyError
from understudy.exchange.frame import Header
from understudy.exchange.tensors import Request, tensor_view
from understudy.rpc import WITHOUT_POLICY, from_rpc_error, open_sync_channel
from understudy.rpc.traces import TRACEPARENT_KEY

_OPTIONS: Final = (*WITHOUT_POLICY, ("grpc.keepalive_time_ms", 2**31 - 1))
"""No pings: the server ends connections that ping, and the canary asks every second anyway."""
_TYPES: Final = {torch.float32: "FP32", torch.int64: "INT64"}


class TritonClient:
    """One model on one server. Safe to use from several threads."""

    def __init__(self, address: str, model: str, digest: str) -> None:
        """Ask `address` for `model`, which must be of the weights with `digest` (hex)."""
        self._model, self._digest, self._address = model, digest, address
        self._channel = open_sync_channel(address, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

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
        metadata = ((TRACEPARENT_KEY, traceparent),) if traceparent else ()
        with _failures():
            response = self._stub.ModelInfer(
                self._infer_request(tensors), timeout=timeout_s, metadata=metadata
            )
        return _sum(response, header)

    def is_live(self, timeout_s: float) -> bool:
        """Whether the server answers, whatever its models do."""
        try:
            with _failures():
                answer = self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=timeout_s)
        except UnderstudyError:
            return False
        return bool(answer.live)

    def reload(self, timeout_s: float) -> None:
        """Unload the model where it is loaded, load it, and check that it is of these weights.

        Raises FailedPrecondition naming what does not fit; Unavailable with what Triton says.
        """
        ready = service_pb2.ModelReadyRequest(name=self._model)
        unload = service_pb2.RepositoryModelUnloadRequest(model_name=self._model)
        load = service_pb2.RepositoryModelLoadRequest(model_name=self._model)
        try:
            with _failures():
                if self._stub.ModelReady(ready, timeout=timeout_s).ready:
                    self._stub.RepositoryModelUnload(unload, timeout=timeout_s)
                self._stub.RepositoryModelLoad(load, timeout=timeout_s)
        except UnderstudyError as error:
            raise Unavailable(
                f"Triton at {self._address} cannot load {self._model}: {error.message}"
            ) from error
        self._check(timeout_s)

    def _check(self, timeout_s: float) -> None:
        asked = service_pb2.ModelConfigRequest(name=self._model)
        with _failures():
            config = self._stub.ModelConfig(asked, timeout=timeout_s).config
        digest = config.parameters["config_digest"].string_value
        if digest != self._digest:
            raise FailedPrecondition(
                f"The model {self._model} of Triton at {self._address} has the config digest"
                f" {digest[:12] or '(none)'}, this worker {self._digest[:12]}; package the same"
                " weights."
            )

    def _infer_request(self, tensors: Sequence[tuple[str, Tensor]]) -> object:
        return service_pb2.ModelInferRequest(
            model_name=self._model,
            inputs=[
                service_pb2.ModelInferRequest.InferInputTensor(
                    name=name, datatype=_TYPES[tensor.dtype], shape=tensor.shape
                )
                for name, tensor in tensors
            ],
            raw_input_contents=[bytes(tensor_view(tensor)) for _, tensor in tensors],
        )


def _sum(response: service_pb2.ModelInferResponse, header: Header) -> Tensor:
    shape = (header.num_tokens, header.hidden_size)
    [output] = response.outputs or [None]
    contents = response.raw_output_contents
    if output is None or tuple(output.shape) != shape or len(contents) != 1:
        raise Internal("Triton answered with something that is no sum of this shape.")
    total = torch.empty(shape)
    if len(contents[0]) != total.numel() * total.element_size():
        raise Internal(f"Triton answered with {len(contents[0])} bytes for a sum of {shape}.")
    tensor_view(total)[:] = contents[0]
    return total


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
