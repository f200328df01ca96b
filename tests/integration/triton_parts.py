"""A real Triton server around one tiny seeded model, for the tests that need it.

The compiled programs are kept in the cache outside the checkout, so only the first run of a
machine compiles.
"""

import json
import os
import shutil
import threading
from dataclasses import dataclass, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from tritonclient.grpc import service_pb2

from services.experts.clients import TritonModel
from services.experts.export import export_decoder, export_ffn
from understudy.exchange.frame import FrameType, Header
from understudy.exchange.tensors import Request
from understudy.local.triton.installation import Installation, find_triton
from understudy.local.triton.server import TritonServer
from understudy.model.config import ModelConfig
from understudy.model.decoder import make_decoder
from understudy.model.paged import PagedKv, PagedSequence
from understudy.model.safetensors_io import save_model
from understudy.model.weights import LoadedModel, load_model, random_weights
from understudy_kernels.package import build

TIMEOUT_S = 60.0

CONFIG = ModelConfig(
    family="llama",
    vocab_size=97,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn_size=96,
    max_positions=256,
)
MIXTURE = replace(
    CONFIG,
    family="qwen3_moe",
    has_qk_norm=True,
    num_experts=4,
    num_experts_per_token=2,
    expert_size=24,
    dense_layers=(0,),
)
"""Its first layer is dense, and of another inner size than the experts."""


@dataclass(frozen=True, slots=True)
class Packaged:
    """Bundles and packages of the tiny models."""

    directory: Path
    dense: LoadedModel
    mixture: LoadedModel
    rounded: LoadedModel
    """The dense model in 16 bits."""
    exact: LoadedModel
    """The mixture as the kernels read it."""
    fast: LoadedModel
    """The dense model in int8, for the kernels."""
    dense_name: str
    mixture_name: str
    decoder_name: str
    rounded_name: str
    exact_name: str
    fast_name: str

    @property
    def repository(self) -> Path:
        return self.directory / "repository"

    @property
    def dense_path(self) -> Path:
        """The dense model's weights, for a worker process."""
        return self.directory / "dense"


def require_installation() -> Installation:
    """Return the server; without one the test is skipped with the remedy."""
    found = find_triton(os.environ)
    if found is None:
        pytest.skip("needs the Triton server: `make triton` unpacks it, or says why not")
    return found


@cache
def make_packages(directory: Path) -> Packaged:
    """Export and compile the models into a repository, once a run."""
    directory.mkdir()
    models = {}
    for name, config in (("dense", CONFIG), ("mixture", MIXTURE)):
        save_model(directory / name, config, random_weights(config, seed=7, deviation=0.3))
        models[name] = load_model(directory / name)
    models["rounded"] = load_model(directory / "dense", "bfloat16")
    models["exact"] = load_model(directory / "mixture", "int8", "exact")
    models["fast"] = load_model(directory / "dense", "int8", "fast")
    bundles = {
        "ffn": export_ffn(models["dense"], directory / "ffn"),
        "experts": export_ffn(models["mixture"], directory / "experts"),
        "decoder": export_decoder(models["dense"], directory / "decoder"),
        "ffn16": export_ffn(models["rounded"], directory / "ffn16"),
        "packed": export_ffn(models["exact"], directory / "packed"),
        "packed-decoder": export_decoder(models["fast"], directory / "packed-decoder"),
    }
    for name in bundles:
        build(directory / name, directory / "repository")
    names = [bundle.name for bundle in bundles.values()]
    return Packaged(directory, *models.values(), *names)


def stub_pids(server: TritonServer) -> list[int]:
    """Processes of python models that the server has started."""
    children = Path(f"/proc/{server.pid}/task").glob("*/children")
    pids = {int(pid) for file in children for pid in file.read_text().split()}
    return sorted(pid for pid in pids if "triton_python" in _command(pid))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


class Collector(ThreadingHTTPServer):
    """Takes OTLP/HTTP posts, as Triton sends them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.spans: list[dict[str, object]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        posted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in posted["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                self.server.spans.extend(scope["spans"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def asked(model: LoadedModel, num_tokens: int, layer: int = 1) -> tuple[Header, Request]:
    config = model.config
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, config.hidden_size, generator=generator)
    header = Header(
        FrameType.REQUEST, 0, 0, layer, 0, 0, num_tokens, config.hidden_size,
        config.num_choices(layer), 0, config.num_ffn_shards,
    )  # fmt: skip
    if not config.is_mixture(layer):
        return header, Request((), hidden, None, None)
    scores = torch.rand(num_tokens, config.num_experts, generator=generator)
    weights, ids = scores.topk(config.num_experts_per_token)
    return header, Request((), hidden, ids, weights)


def greedy(model: LoadedModel, prompt: list[int], num_steps: int) -> list[int]:
    decoder = make_decoder(model.config, model.stored, None, model.compute)
    kv, tokens = PagedKv(model.config, 4, 16), list(prompt)
    for _ in range(num_steps):
        with torch.inference_mode():
            whole = [PagedSequence([0, 1, 2, 3], 0, len(tokens))]
            hidden = decoder.advance(torch.tensor(tokens), kv, whole)
            tokens.append(int(decoder.logits(hidden[-1:]).argmax()))
    return tokens[len(prompt) :]


class copied:  # noqa: N801  # reads as a phrase
    """The dense package under another name, for as long as the block."""

    def __init__(self, packaged: Packaged, name: str) -> None:
        self._source = packaged.repository / packaged.dense_name
        self._target = packaged.repository / name

    def __enter__(self) -> Path:
        newest = sorted(self._source.glob("[0-9]*"))[-1]
        shutil.copytree(newest, self._target / "1")
        config = (self._source / "config.pbtxt").read_text()
        (self._target / "config.pbtxt").write_text(
            config.replace(self._source.name, self._target.name)
        )
        return self._target / "1"

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._target)


def load(server: TritonServer, name: str) -> None:
    model = TritonModel(server.grpc_address, name)
    model.stub.RepositoryModelLoad(
        service_pb2.RepositoryModelLoadRequest(model_name=name), timeout=TIMEOUT_S
    )
    model.close()


def loaded_versions(server: TritonServer, name: str) -> set[int]:
    model = TritonModel(server.grpc_address, name)
    index = model.stub.RepositoryIndex(
        service_pb2.RepositoryIndexRequest(ready=True), timeout=TIMEOUT_S
    )
    model.close()
    return {int(entry.version) for entry in index.models if entry.name == name}
