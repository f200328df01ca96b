"""What Triton costs: `python -m benchmarks.triton [--quick] [--json FILE]`.

The feed-forward of one layer of SmolLM2-135M, and the shipped SLM decoding whole, here and in a
real server. Every side runs one thread and they take turns within each round. Packages are compiled
once and kept in the cache.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from benchmarks.measure import ROOT, Bounds, Timing, bounds, header, interleaved, machine
from services.experts.clients import TritonModel, TritonShards
from services.experts.export import decoder_name, export_decoder, export_ffn
from services.experts.holdings import Holdings
from understudy.exchange.frame import FrameType, Header
from understudy.exchange.tensors import Request
from understudy.local.triton.installation import require_triton
from understudy.local.triton.server import TritonServer
from understudy.model.decoder import Decoder, make_decoder
from understudy.model.locate import locate_model
from understudy.model.paged import PagedKv, PagedSequence
from understudy.model.weights import LoadedModel, load_model
from understudy_kernels import load
from understudy_kernels.package import build

LAYER: Final = (0,)
SLM: Final = ROOT / "models" / "slm-snips"
TOKENS: Final = (1, 8, 64, 128, 256, 512, 1024)
BATCHES: Final = (1, 8)
PROMPT_TOKENS: Final = 24
STEPS: Final = 24
MAX_OVERHEAD: Final = 0.1
TIMEOUT_S: Final = 60.0
BLOCK: Final = 16
CALLS: Final = ("kernels", "torch", "triton", "triton shm", "triton float32")
"""Who computes a feed-forward: the worker's default, its reference, the package that calls the
same kernels, over the wire and in shared memory, and the package of float32 in shared memory."""
WHOLE: Final = ("kernels", "torch", "triton", "triton float32")
BEFORE: Final = ("kernels", "torch")
FLOAT32: Final = "-float32"
"""What the names of packages of float32 end with here: by themselves both kinds have one name."""

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Row:
    """Timings by side, of calls with so many tokens or sequences."""

    size: int
    timings: Mapping[str, Timing]

    def median_ms(self, side: str) -> float:
        """Return a side's median in milliseconds."""
        return self.timings[side].median_s * 1e3


@dataclass(frozen=True, slots=True)
class Model:
    """One file of weights as the kernels read it, and as plain tensors."""

    packed: LoadedModel
    plain: LoadedModel

    @classmethod
    def load(cls, path: Path) -> "Model":
        """Load it both ways."""
        return cls(load_model(path, compute="exact"), load_model(path))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and write the figures where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: not for figures")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    num_rounds = 5 if given.quick else 25
    where = machine(load().isa)
    llm, slm = Model.load(locate_model("smollm2")), Model.load(SLM)
    with served(llm, slm) as server, torch.inference_mode():
        limits = bounds(num_rounds)
        print(header(where, limits) + "\n")
        calls = feed_forward(server, llm, num_rounds)
        print("\n".join(call_table(calls)) + "\n")
        whole = small_model(server, slm, num_rounds)
        print("\n".join(decoding_table(whole)))
    if given.json:
        write_json(given.json, asdict(where), limits, calls, whole)


def feed_forward(server: TritonServer, model: Model, num_rounds: int) -> list[Row]:
    """Measure one layer's feed-forward by token rows: in process two ways, and in Triton."""
    packed, plain = (Holdings.take(each, LAYER) for each in (model.packed, model.plain))
    address, name = server.grpc_address, packed.package_name
    wire, shared = (TritonShards(address, name, packed, is_local=local) for local in (False, True))
    float32 = TritonShards(address, name + FLOAT32, plain, is_local=True)
    rows = []
    for num_tokens in TOKENS:
        head, request = _asked(plain, num_tokens)
        # Every side follows one that has other weights: none finds its own in the caches.
        sides = {
            "kernels": _here(packed, head, request),
            "triton": _there(wire, head, request),
            "torch": _here(plain, head, request),
            "triton shm": _there(shared, head, request),
            "triton float32": _there(float32, head, request),
        }
        here, there = sides["kernels"](), sides["triton"]()
        assert torch.equal(torch.as_tensor(here), torch.as_tensor(there)), "other sums"
        rows.append(Row(num_tokens, interleaved(sides, num_rounds)))
    for client in (wire, shared, float32):
        client.close()
    return rows


def small_model(server: TritonServer, model: Model, num_rounds: int) -> list[Row]:
    """Measure greedy decoding of the whole SLM by batch: in process two ways, and in Triton."""
    name = decoder_name(model.packed)
    clients = {
        "triton": TritonModel(server.grpc_address, name),
        "triton float32": TritonModel(server.grpc_address, name + FLOAT32),
    }
    decoders = {
        "kernels": make_decoder(model.packed.config, model.packed.stored, None, "exact"),
        "torch": make_decoder(model.plain.config, model.plain.stored, None, "reference"),
    }
    rows = []
    for batch in BATCHES:
        prompts = torch.randint(0, model.plain.config.vocab_size, (batch, PROMPT_TOKENS))
        sides: dict[str, Call] = {
            **{name: _decoding(decoder, prompts) for name, decoder in decoders.items()},
            **{name: _asking(client, prompts) for name, client in clients.items()},
        }
        answers = {side: torch.as_tensor(call()) for side, call in sides.items()}
        assert torch.equal(answers["triton"], answers["kernels"]), "one arithmetic, other tokens"
        share = (answers["triton float32"] == answers["kernels"]).float().mean()
        print(f"{batch} sequences: {share:.0%} of the float32 package's tokens are the kernels'")
        rows.append(Row(batch, interleaved(sides, max(3, num_rounds // 3))))
    for client in clients.values():
        client.close()
    return rows


def decode(decoder: Decoder, prompts: Tensor) -> Tensor:
    """Decode greedily as the attention worker does: paged KV, prompts first, then step by step."""
    batch, width = prompts.shape
    num_blocks = -(-(width + STEPS) // BLOCK)
    kv = PagedKv(decoder.config, batch * num_blocks, BLOCK)
    tables = [list(range(b * num_blocks, (b + 1) * num_blocks)) for b in range(batch)]

    def step(tokens: Tensor, num_cached: int, num_new: int) -> Tensor:
        sequences = [PagedSequence(table, num_cached, num_new) for table in tables]
        hidden = decoder.advance(tokens, kv, sequences)
        return decoder.logits(hidden[num_new - 1 :: num_new]).argmax(dim=-1)

    chosen = [step(prompts.flatten(), 0, width)]
    for number in range(STEPS - 1):
        chosen.append(step(chosen[-1], width + number, 1))
    return torch.stack(chosen, dim=1)


@contextmanager
def served(llm: Model, slm: Model) -> Iterator[TritonServer]:
    """Package a layer of one model and the whole other, twice, serve them, and end the server."""
    installation = require_triton(os.environ)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        names = []
        for ending, layer, whole in (("", llm.packed, slm.packed), (FLOAT32, llm.plain, slm.plain)):
            bundles = {
                directory / f"ffn{ending}": export_ffn(layer, directory / f"ffn{ending}", LAYER),
                directory / f"slm{ending}": export_decoder(whole, directory / f"slm{ending}"),
            }
            for path, bundle in bundles.items():
                names.append(bundle.name + ending)
                build(path, directory / "repository", name=names[-1])
        log = directory / "server.log"
        server = TritonServer(installation, directory / "repository", log, models=names)
        try:
            server.wait_ready()
            yield server
        finally:
            server.stop()


def break_even(rows: Sequence[Row], side: str, before: str) -> str:
    """Return the fewest tokens from which a side takes at most a tenth longer, in words."""
    for index, row in enumerate(rows):
        later = rows[index:]
        limit = 1 + MAX_OVERHEAD
        if all(each.median_ms(side) <= limit * each.median_ms(before) for each in later):
            return f"{row.size} tokens"
    return f"never up to {rows[-1].size} tokens"


def call_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table of calls, and where the overhead ends."""
    yield f"| tokens a call |{''.join(f' {side} ms |' for side in CALLS)} added ms | added shm ms |"
    yield "| --- " * (len(CALLS) + 3) + "|"
    for row in rows:
        cells = [f"{row.median_ms(side):.2f} ({row.timings[side].spread:.0%})" for side in CALLS]
        here = row.median_ms("kernels")
        added = [f"{row.median_ms(side) - here:.2f}" for side in ("triton", "triton shm")]
        yield f"| {row.size} | " + " | ".join((*cells, *added)) + " |"
    yield ""
    for before in BEFORE:
        wire, shared = (break_even(rows, side, before) for side in ("triton", "triton shm"))
        yield f"overhead over {before} below 10 % from: {wire}; with shared memory: {shared}"


def decoding_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table of the SLM hosted whole."""
    yield f"| sequences |{''.join(f' {side} tokens/s |' for side in WHOLE)} triton / kernels |"
    yield "| --- " * (len(WHOLE) + 2) + "|"
    for row in rows:
        speeds = {side: row.size * STEPS / row.timings[side].median_s for side in WHOLE}
        cells = "".join(
            f" {speed:.0f} ({row.timings[side].spread:.0%}) |" for side, speed in speeds.items()
        )
        yield f"| {row.size} |{cells} {speeds['triton'] / speeds['kernels']:.2f} |"


def write_json(
    path: Path,
    where: Mapping[str, object],
    limits: Bounds,
    calls: Sequence[Row],
    whole: Sequence[Row],
) -> None:
    """Write everything measured."""
    content = {
        "command": sys.argv,
        "machine": where,
        "bounds": asdict(limits),
        "feed_forward": [asdict(row) for row in calls],
        "small_model": [asdict(row) for row in whole],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def _asked(holdings: Holdings, num_tokens: int) -> tuple[Header, Request]:
    size = holdings.config.hidden_size
    hidden = torch.randn(num_tokens, size)
    num_shards = len(holdings.shards)
    head = Header(
        FrameType.REQUEST, 0, 0, LAYER[0], 0, 0, num_tokens, size, num_shards=num_shards
    )  # fmt: skip
    return head, Request((), hidden, None, None)


def _here(holdings: Holdings, head: Header, request: Request) -> Call:
    return lambda: holdings.compute(head, request)


def _there(shards: TritonShards, head: Header, request: Request) -> Call:
    return lambda: shards.compute(head, request, timeout_s=TIMEOUT_S, traceparent="")


def _decoding(decoder: Decoder, prompts: Tensor) -> Call:
    return lambda: decode(decoder, prompts)


def _asking(client: TritonModel, prompts: Tensor) -> Call:
    lengths = torch.full((prompts.shape[0],), PROMPT_TOKENS)
    named = (("tokens", prompts), ("lengths", lengths), ("steps", torch.tensor([STEPS])))
    return lambda: client.infer(named, timeout_s=TIMEOUT_S)


if __name__ == "__main__":
    main()
