"""What Triton costs: a feed-forward there against the same one here, and the SLM hosted whole.

`python -m benchmarks.triton [--quick] [--json FILE]`. Both sides run one torch thread and take
turns within each round, so that what else the machine does meets both. Packages are compiled once
and kept in the cache.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from services.experts.clients import TritonModel, TritonShards
from services.experts.export import export_decoder, export_ffn
from services.experts.holdings import Holdings
from understudy.exchange.frame import FrameType, Header
from understudy.exchange.tensors import Request
from understudy.local.triton.installation import require_triton
from understudy.local.triton.server import TritonServer
from understudy.model.config import ModelConfig
from understudy.model.paged import PagedContext, PagedKv, PagedSequence
from understudy.model.transformer import Transformer
from understudy.model.weights import LoadedModel, load_model, random_weights
from understudy_kernels.package import build
from understudy_kernels.packaging.serving.manifest import machine_isa
from understudy_kernels.packaging.serving.runtime import DecoderPackage, FfnPackage

ROOT: Final = Path(__file__).resolve().parents[1]
SLM: Final = ROOT / "models" / "slm-snips"
FFN: Final = ModelConfig(
    family="llama", vocab_size=64, hidden_size=576, num_layers=1, num_heads=9, num_kv_heads=3,
    head_dim=64, ffn_size=1536,
)  # fmt: skip
"""The feed-forward of SmolLM2-135M in two shards, fp32."""
TOKENS: Final = (1, 8, 64, 128, 256, 512, 1024)
REPORTED: Final = (1, 8, 64, 512)
BATCHES: Final = (1, 8)
PROMPT_TOKENS: Final = 24
STEPS: Final = 24
MAX_OVERHEAD: Final = 0.1
TIMEOUT_S: Final = 60.0
BLOCK: Final = 16

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one side over the rounds."""

    median_s: float
    low_s: float
    """First quartile."""
    high_s: float
    """Third quartile."""


def measure(sides: Mapping[str, Call], num_rounds: int) -> dict[str, Timing]:
    """Warm up, then let the sides take turns; returns each side's timing."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(num_rounds + 2):
        for name, call in sides.items():
            started = time.perf_counter()
            call()
            if round_number >= 2:
                taken[name].append(time.perf_counter() - started)
    quartiles = {name: statistics.quantiles(seconds, n=4) for name, seconds in taken.items()}
    return {name: Timing(middle, low, high) for name, (low, middle, high) in quartiles.items()}


def feed_forward(server: TritonServer, model: LoadedModel, num_rounds: int) -> list[object]:
    """Measure a layer's feed-forward here, compiled here, and in Triton, by token rows."""
    holdings = Holdings.take(model)
    package = FfnPackage(server.repository / holdings.package_name / "1", model.digest)
    plain, shared = (
        TritonShards(server.grpc_address, holdings.package_name, model.digest, is_local=is_local)
        for is_local in (False, True)
    )
    rows: list[object] = []
    for num_tokens in TOKENS:
        hidden = torch.randn(num_tokens, FFN.hidden_size)
        header = Header(FrameType.REQUEST, 0, 0, 0, 0, 0, num_tokens, FFN.hidden_size, num_shards=2)
        request = Request((), hidden, None, None)

        def ask(
            client: TritonShards, header: Header = header, request: Request = request
        ) -> Tensor:
            return client.compute(header, request, timeout_s=TIMEOUT_S, traceparent="")

        sides: dict[str, Call] = {
            "in process": lambda h=header, r=request: holdings.compute(h, r),  # type: ignore[misc]
            "compiled": lambda hidden=hidden: package.compute(0, 0, 2, hidden),  # type: ignore[misc]
            "triton": lambda: ask(plain),
            "triton shm": lambda: ask(shared),
        }
        timings = measure(sides, num_rounds)
        rows.append({"tokens": num_tokens, **{name: asdict(t) for name, t in timings.items()}})
    plain.close()
    shared.close()
    return rows


def small_model(server: TritonServer, model: LoadedModel, num_rounds: int) -> list[object]:
    """Measure the SLM's greedy decoding here, compiled here, and whole in Triton, by batch."""
    name = f"decoder-{model.digest[:12]}"
    package = DecoderPackage(server.repository / name / "1", model.digest)
    client = TritonModel(server.grpc_address, name)
    transformer = Transformer(model.config, model.weights)
    rows: list[object] = []
    for batch in BATCHES:
        prompts = torch.randint(0, model.config.vocab_size, (batch, PROMPT_TOKENS))
        lengths = torch.full((batch,), PROMPT_TOKENS)
        sides: dict[str, Call] = {
            "in process": lambda p=prompts: decode(transformer, p),  # type: ignore[misc]
            "compiled": lambda p=prompts, n=lengths: package.generate(p, n, STEPS),  # type: ignore[misc]
            "triton": lambda p=prompts, n=lengths: client.infer(  # type: ignore[misc]
                (("tokens", p), ("lengths", n), ("steps", torch.tensor([STEPS]))),
                timeout_s=TIMEOUT_S,
            ),
        }
        answers = [torch.as_tensor(call()) for call in sides.values()]
        assert all(torch.equal(answer, answers[0]) for answer in answers), "the tokens differ"
        timings = measure(sides, num_rounds)
        rows.append(
            {
                "sequences": batch,
                **{
                    name: {**asdict(timing), "tokens_per_s": batch * STEPS / timing.median_s}
                    for name, timing in timings.items()
                },
            }
        )
    client.close()
    return rows


def decode(transformer: Transformer, prompts: Tensor) -> Tensor:
    """Decode greedily as the attention worker does: paged KV, prompts first, then step by step."""
    config, (batch, width) = transformer.config, prompts.shape
    num_blocks = -(-(width + STEPS) // BLOCK)
    kv = PagedKv(config, batch * num_blocks, BLOCK)
    tables = [list(range(b * num_blocks, (b + 1) * num_blocks)) for b in range(batch)]

    def step(tokens: Tensor, num_cached: int, num_new: int) -> Tensor:
        sequences = [PagedSequence(table, num_cached, num_new) for table in tables]
        positions = torch.arange(num_cached, num_cached + num_new).repeat(batch)
        hidden = transformer.forward(tokens, positions, PagedContext(kv, sequences))
        return transformer.logits(hidden[num_new - 1 :: num_new]).argmax(dim=-1)

    chosen = [step(prompts.flatten(), 0, width)]
    for number in range(STEPS - 1):
        chosen.append(step(chosen[-1], width + number, 1))
    return torch.stack(chosen, dim=1)


@contextmanager
def served(models: Sequence[tuple[str, LoadedModel]]) -> Iterator[TritonServer]:
    """Package the models, serve them, and end the server."""
    installation = require_triton(os.environ)
    with tempfile.TemporaryDirectory() as scratch:
        names = []
        for kind, model in models:
            bundle_dir = Path(scratch) / kind
            export = {"ffn": export_ffn, "decoder": export_decoder}[kind]
            names.append(export(model, bundle_dir).name)
            build(bundle_dir, Path(scratch) / "repository")
        log = Path(scratch) / "server.log"
        server = TritonServer(installation, Path(scratch) / "repository", log, models=names)
        try:
            server.wait_ready()
            yield server
        finally:
            server.stop()


def break_even(rows: Sequence[Mapping[str, Mapping[str, float]]], side: str) -> int | None:
    """Return the fewest tokens from which Triton's overhead stays below a tenth."""
    slow = [
        int(str(row["tokens"]))
        for row in rows
        if row[side]["median_s"] >= (1 + MAX_OVERHEAD) * row["in process"]["median_s"]
    ]
    beyond = [tokens for tokens in TOKENS if tokens > max(slow, default=0)]
    return beyond[0] if beyond else None


def machine() -> dict[str, object]:
    """Return what a reader must know to compare figures."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        cwd=ROOT, check=False, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    return {
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "instructions": list(machine_isa()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }


def report(results: Mapping[str, object]) -> Iterator[str]:
    """Yield the tables."""
    yield f"machine: {results['machine']}"
    heads = ("in process", "compiled", "triton", "triton shm", "added", "added shm")
    yield f"| tokens |{''.join(f' {head} ms |' for head in heads)}"
    yield "|---" * (1 + len(heads)) + "|"
    for row in results["feed_forward"]:  # type: ignore[attr-defined]
        times = {name: row[name]["median_s"] * 1e3 for name in row if name != "tokens"}
        added = [times[name] - times["in process"] for name in ("triton", "triton shm")]
        cells = "".join(f" {value:.2f} |" for value in (*times.values(), *added))
        yield f"| {row['tokens']} |{cells}"
    yield f"overhead below 10 % from {results['break_even_tokens']} tokens a call"
    yield f"with shared memory from {results['break_even_tokens_shm']} tokens a call"
    heads = ("in process", "compiled", "triton")
    yield f"| sequences |{''.join(f' {head} tokens/s |' for head in heads)} triton / in process |"
    yield "|---" * (2 + len(heads)) + "|"
    for row in results["small_model"]:  # type: ignore[attr-defined]
        speeds = [row[name]["tokens_per_s"] for name in heads]
        cells = "".join(f" {speed:.0f} |" for speed in speeds)
        yield f"| {row['sequences']} |{cells} {speeds[2] / speeds[0]:.2f} |"


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser("python -m benchmarks.triton", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: not for figures")
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    num_rounds = 8 if chosen.quick else 60
    ffn = LoadedModel(FFN, random_weights(FFN, seed=0), FFN.digest())
    slm = load_model(SLM)
    with served([("ffn", ffn), ("decoder", slm)]) as server, torch.inference_mode():
        rows = feed_forward(server, ffn, num_rounds)
        results = {
            "machine": machine(),
            "rounds": num_rounds,
            "feed_forward": rows,
            "break_even_tokens": break_even(rows, "triton"),  # type: ignore[arg-type]
            "break_even_tokens_shm": break_even(rows, "triton shm"),  # type: ignore[arg-type]
            "small_model": small_model(server, slm, max(4, num_rounds // 4)),
        }
    for line in report(results):
        sys.stdout.write(f"{line}\n")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
