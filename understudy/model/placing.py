"""Where tensors of a model lie: in the memory of the processor or of a GPU.

Everything that a step makes is made on the device of the KV storage; what crosses to the host are
token ids, masks and block tables on the way in, chosen tokens and hidden states for expert workers
on the way out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

from understudy.errors import FailedPrecondition
from understudy.model.adapter import Adapter
from understudy.model.ffn import Experts, Gates, PendingHidden
from understudy.model.linear import Stored, Weights

Device = Literal["auto", "cpu", "cuda"]
"""What a worker may be told; `auto` takes a GPU where torch can use one."""
CPU: Final = torch.device("cpu")


def resolve_device(wanted: Device) -> torch.device:
    """Return the device to compute on. Raises FailedPrecondition for a GPU that is not there."""
    has_gpu = wanted != "cpu" and torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise FailedPrecondition(
            f"The device is cuda and this torch {torch.__version__} can use no GPU; give the"
            " container one, or set the device to auto or cpu."
        )
    return torch.device("cuda") if has_gpu else CPU


def place_weights(weights: Weights, device: torch.device) -> Weights:
    """Return weights of the host on `device`; they themselves where that is the host."""
    return weights if device == CPU else _PlacedWeights(weights, device)


class _PlacedWeights(Mapping[str, Stored]):
    """Weights that are brought to a device when they are first asked for, and kept there."""

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self._weights, self._device = weights, device
        self._placed: dict[str, Stored] = {}

    def __getitem__(self, name: str) -> Stored:
        if name not in self._placed:
            self._placed[name] = self._weights[name].to(self._device)
        return self._placed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def place_adapter(adapter: Adapter, device: torch.device) -> Adapter:
    """Return an adapter of the host on `device`; itself where that is the host."""
    if device == CPU:
        return adapter
    return replace(
        adapter,
        tensors={key: tensor.to(device) for key, tensor in adapter.tensors.items()},
        packed={key: factor.to(device) for key, factor in adapter.packed.items()},
    )


class ExpertsOfHost:
    """`Experts` that read and write the host's memory, for hidden states of any device."""

    def __init__(self, experts: Experts) -> None:
        self._experts = experts

    def submit(self, layer: int, hidden: Tensor, gates: Gates | None) -> PendingHidden:
        """Start the feed-forward of `hidden` (T, D); its sum comes back to hidden's device."""
        on_host = None if gates is None else Gates(gates.ids.to(CPU), gates.weights.to(CPU))
        return _Returned(self._experts.submit(layer, hidden.to(CPU), on_host), hidden.device)


@dataclass(frozen=True, slots=True)
class _Returned:
    pending: PendingHidden
    device: torch.device

    def wait(self) -> Tensor:
        return self.pending.wait().to(self.device)
