"""Where the calls of `benchmarks.kernels` are timed, and what that place can do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.measure import Bounds, Timing, interleaved

Bound = tuple[float, str]


@dataclass(frozen=True, slots=True)
class Setup:
    """Where and how often calls are timed, and what the place can do."""

    limits: Bounds
    num_rounds: int
    device: str

    def time(
        self, contestants: Mapping[str, Callable[[], object]], num_rounds: int = 0
    ) -> dict[str, Timing]:
        """Time contestants in turn."""
        return interleaved(contestants, num_rounds or self.num_rounds, device=self.device)

    def of_read(self, num_bytes: float, seconds: float) -> Bound:
        """Return which share of the read bandwidth a call reaches that must read so much."""
        return num_bytes / seconds / self.limits.read_bytes_per_s, "read bandwidth"

    def of_copy(self, num_bytes: float, seconds: float) -> Bound:
        """Return which share of the copy bandwidth a call reaches that reads and writes so much."""
        return num_bytes / seconds / self.limits.copy_bytes_per_s, "copy bandwidth"

    def of_peak(self, num_macs: float, seconds: float) -> Bound:
        """Return which share of torch's float32 peak a call reaches."""
        return num_macs / seconds / self.limits.float_macs_per_s, "torch's float32 peak"
