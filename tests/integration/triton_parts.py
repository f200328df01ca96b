"""A real Triton server around one tiny seeded model, for the tests that need it.

The compiled programs are kept in the cache outside the checkout, so only the first run of a
machine compiles.
"""

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from services.experts.export import export_decoder, export_ffn
from understudy.local.triton.installation import Installation, find_triton
from understudy.local.triton.server import TritonServer
from understudy.model.config import ModelConfig
from understudy.model.safetensors_io import save_model
from understudy.model.weights import LoadedModel, load_model, random_weights
from understudy_kernels.package import build

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
    dense_name: str
    mixture_name: str
    decoder_name: str

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
    bundles = {
        "ffn": export_ffn(models["dense"], directory / "ffn"),
        "experts": export_ffn(models["mixture"], directory / "experts"),
        "decoder": export_decoder(models["dense"], directory / "decoder"),
    }
    for name in bundles:
        build(directory / name, directory / "repository")
    names = [bundle.name for bundle in bundles.values()]
    return Packaged(directory, models["dense"], models["mixture"], *names)


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
