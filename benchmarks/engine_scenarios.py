"""What `benchmarks.engine` asks of everybody, and the least time that each question could take."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.measure import Bounds


@dataclass(frozen=True, slots=True)
class Scenario:
    """One question to all, and the tokens by which its seconds are divided."""

    name: str
    question: Mapping[str, object]
    num_tokens: int
    num_sequences: int = 0
    """Sequences that decode; 0 for a prompt."""

    def least_s(self, facts: Mapping[str, float], limits: Bounds, speedup: float) -> float:
        """Return the seconds that memory (decode) or arithmetic (prompt) would need at least."""
        if self.num_sequences:
            context = float(str(self.question["context"])) + self.num_tokens / 2
            kv_bytes = self.num_sequences * context * facts["kv_bytes_per_token"]
            num_steps = self.num_tokens / self.num_sequences
            return num_steps * (facts["weight_bytes"] + kv_bytes) / limits.copy_bytes_per_s
        attention = self.num_tokens**2 / 2 * facts["attention_macs"]
        layers = self.num_tokens * facts["layer_macs"] / speedup
        return (layers + attention + facts["head_macs"] / speedup) / limits.float_macs_per_s


def scenarios(*, is_quick: bool) -> list[Scenario]:
    """Return what is asked."""
    steps = 16 if is_quick else 32

    def decode(num_sequences: int, context: int) -> Scenario:
        question = {
            "kind": "decode",
            "num_sequences": num_sequences,
            "context": context,
            "num_tokens": steps,
        }
        plural = "s" if num_sequences > 1 else ""
        name = f"decode, {num_sequences} sequence{plural} of {context} tokens"
        return Scenario(name, question, steps * num_sequences, num_sequences)

    def prefill(num_tokens: int) -> Scenario:
        question = {"kind": "prefill", "num_tokens": num_tokens}
        return Scenario(f"prompt of {num_tokens} tokens", question, num_tokens)

    short = [decode(1, 512), decode(8, 512), prefill(512)]
    return short if is_quick else [*short, prefill(2048)]
