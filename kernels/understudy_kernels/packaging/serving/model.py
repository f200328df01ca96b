"""Triton's python backend serving one package of ours.

Tensors cross as DLPack only: with numpy 2 the backend's numpy conversions corrupt data silently.
"""

from __future__ import annotations  # the backend's module lacks some types when it is imported

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import triton_python_backend_utils as pb
from serving.decoding import DecoderPackage
from serving.manifest import Manifest, PackageError
from serving.runtime import FfnPackage
from torch import Tensor


class TritonPythonModel:
    """One package; Triton calls `initialize` once and `execute` for every batch of requests."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the package that lies beside this file; a bad one fails the load by name."""
        parameters = json.loads(args["model_config"])["parameters"]
        torch.set_num_threads(int(parameters["threads"]["string_value"]))
        directory = Path(args["model_repository"]) / args["model_version"]
        digest = parameters["config_digest"]["string_value"]
        try:
            opened = {"ffn": FfnPackage, "decoder": DecoderPackage}
            self._package = opened[Manifest.read(directory).kind](directory, digest)
        except PackageError as error:
            raise pb.TritonModelException(str(error)) from error

    def execute(self, requests: Sequence[pb.InferenceRequest]) -> list[pb.InferenceResponse]:
        """Answer each request; one that does not fit fails alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: pb.InferenceRequest) -> pb.InferenceResponse:
        try:
            with torch.inference_mode():
                outputs = self._compute(request)
        except (PackageError, RuntimeError) as error:
            return pb.InferenceResponse(error=pb.TritonError(str(error)))
        return pb.InferenceResponse([pb.Tensor.from_dlpack(*outputs)])

    def _compute(self, request: pb.InferenceRequest) -> tuple[str, Tensor]:
        if isinstance(self._package, DecoderPackage):
            tokens, lengths, steps = (_tensor(request, n) for n in ("tokens", "lengths", "steps"))
            return "generated", self._package.generate(tokens, lengths, int(steps[0]))
        layer, first_shard, num_shards = _tensor(request, "place").tolist()
        hidden = _tensor(request, "hidden")
        gates = (_optional(request, name) for name in ("expert_ids", "gate_weights"))
        return "total", self._package.compute(layer, first_shard, num_shards, hidden, *gates)


def _tensor(request: pb.InferenceRequest, name: str) -> Tensor:
    return torch.from_dlpack(pb.get_input_tensor_by_name(request, name))


def _optional(request: pb.InferenceRequest, name: str) -> Tensor | None:
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else torch.from_dlpack(tensor)
