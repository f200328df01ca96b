"""Packages on disk: what does not match is refused by name, before anything of it runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from understudy.errors import FailedPrecondition, InvalidArgument
from understudy_kernels.package import main
from understudy_kernels.packaging import (
    Bundle,
    check_package,
    compile_programs,
    publish,
    read_bundle,
    remove_version,
    versions,
)
from understudy_kernels.packaging.bundle import BUNDLE, write_tensors
from understudy_kernels.packaging.compiling import cache_directory, find_compiler
from understudy_kernels.packaging.repository import triton_config
from understudy_kernels.packaging.serving.decoding import DecoderPackage
from understudy_kernels.packaging.serving.files import map_tensors
from understudy_kernels.packaging.serving.manifest import (
    COMPILED,
    MANIFEST,
    WEIGHTS,
    Manifest,
    PackageError,
    machine_isa,
)
from understudy_kernels.packaging.serving.runtime import FfnPackage

DIGEST = "ab" * 32
SHAPE = {
    "hidden_size": 8,
    "num_experts": 0,
    "num_experts_per_token": 0,
    "num_ffn_shards": 2,
}
DENSE = Bundle("ffn-x", "ffn", DIGEST, SHAPE, program_digests=("cd" * 32,))


@pytest.fixture
def bundle_dir(tmp_path: Path) -> Path:
    """A bundle's folder with weights, and a compiled program that is rubbish."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    write_tensors(directory / WEIGHTS, {"0.0.0.0.gate": torch.arange(6.0).view(2, 3)})
    (directory / COMPILED).write_bytes(b"no program at all")
    return directory


@pytest.fixture
def repository(tmp_path: Path, bundle_dir: Path) -> Path:
    repository = tmp_path / "repository"
    publish(repository, bundle_dir, DENSE, [bundle_dir / COMPILED], threads=1)
    return repository


@pytest.fixture
def package(repository: Path) -> Path:
    return repository / "ffn-x" / "1"


def rewrite(package: Path, **changes: object) -> None:
    manifest = json.loads((package / MANIFEST).read_text())
    (package / MANIFEST).write_text(json.dumps(manifest | changes))


def test_a_package_that_matches_is_accepted(package: Path):
    manifest = check_package(package, DIGEST)
    assert (manifest.kind, manifest.config_digest, manifest.shape) == ("ffn", DIGEST, SHAPE)
    assert manifest.isa == machine_isa()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arithmetic": "approximate"}, "no manifest of a package"),
        ({"arithmetic": "exact"}, r"KeyError\('kernels.so'\)"),
        ({"config_digest": "ef" * 32}, r"config digest efefefefefef; abababababab is wanted"),
        ({"torch_version": "1.0"}, "torch version 1.0"),
        ({"isa": ["x86_64", "avx9"]}, "ISA with avx9"),
        ({"format": 9}, "format 9"),
        ({"kind": "attention"}, "kind 'attention'"),
        ({"files": {}}, "no manifest of a package"),
        ({"shape": {"hidden_size": "8"}}, "no manifest of a package"),
        ({"isa": None}, "no manifest of a package"),
        ({"surprise": 1}, "no manifest of a package"),
    ],
)
def test_what_does_not_match_is_refused_by_name(package: Path, changes, words: str):
    rewrite(package, **changes)
    with pytest.raises(FailedPrecondition, match=words):
        check_package(package, DIGEST)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"[1]", b'"text"', b"\xff\xfe"])
def test_a_rubbish_manifest_is_refused(package: Path, content: bytes):
    (package / MANIFEST).write_bytes(content)
    with pytest.raises(FailedPrecondition, match="no manifest of a package"):
        check_package(package)


@pytest.mark.parametrize("name", [COMPILED, WEIGHTS])
def test_a_file_that_was_changed_or_lost_is_named(package: Path, name: str):
    content = (package / name).read_bytes()
    (package / name).unlink()
    with pytest.raises(FailedPrecondition, match=name):
        check_package(package)
    (package / name).write_bytes(content[:-1] + b"x")
    with pytest.raises(FailedPrecondition, match=f"{name} is not what its manifest says"):
        check_package(package)


def test_a_manifest_cannot_point_outside_its_package(package: Path):
    files = {COMPILED: "0", WEIGHTS: "0", "../../config.pbtxt": "0"}
    rewrite(package, files={"../../config.pbtxt": "0"} | files)
    with pytest.raises(FailedPrecondition, match="content of"):
        check_package(package)


def test_a_program_that_torch_cannot_load_is_refused(package: Path):
    with pytest.raises(PackageError, match="torch cannot load"):
        FfnPackage(package, DIGEST)


def test_a_package_of_another_kind_is_refused(package: Path):
    with pytest.raises(PackageError, match="kind 'ffn', not 'decoder'"):
        DecoderPackage(package, DIGEST)


def test_each_version_appears_whole_and_counts_up(repository: Path, bundle_dir: Path):
    assert publish(repository, bundle_dir, DENSE, [bundle_dir / COMPILED], threads=1) == 2
    assert versions(repository, "ffn-x") == [1, 2]
    assert not [entry for entry in repository.iterdir() if entry.name.startswith(".")]
    remove_version(repository, "ffn-x", 1)
    assert versions(repository, "ffn-x") == [2]
    assert versions(repository, "nobody") == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "x" * 129])
def test_a_name_that_is_no_folders_is_refused(tmp_path: Path, bundle_dir: Path, name: str):
    with pytest.raises(InvalidArgument, match="cannot name a model"):
        publish(tmp_path, bundle_dir, replace(DENSE, name=name), [bundle_dir / COMPILED], 1)


def test_the_servers_config_names_inputs_digest_and_threads():
    config = triton_config(DENSE, threads=3)
    assert 'name: "hidden" data_type: TYPE_FP32 dims: [ -1, 8 ]' in config
    assert "expert_ids" not in config
    assert f'key: "config_digest" value: {{ string_value: "{DIGEST}" }}' in config
    assert 'key: "threads" value: { string_value: "3" }' in config
    mixture = {**SHAPE, "num_experts": 4, "num_experts_per_token": 2}
    config = triton_config(replace(DENSE, shape=mixture), threads=1)
    assert 'name: "expert_ids" data_type: TYPE_INT64 dims: [ -1, 2 ] optional: true }' in config


def test_written_tensors_are_safetensors_and_aligned_in_memory(tmp_path: Path):
    tensors = {
        "a": torch.arange(3.0),
        "b": torch.arange(4, dtype=torch.int64).view(2, 2),
        "c": torch.randn(2, 5).to(torch.bfloat16),
    }
    write_tensors(tmp_path / "w", tensors)
    read, mapped = load_file(tmp_path / "w"), map_tensors(tmp_path / "w")
    assert mapped.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert torch.equal(mapped[name], tensor)
        assert mapped[name].data_ptr() % 64 == 0


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path):
    (tmp_path / "w").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(PackageError, match="header of"):
        map_tensors(tmp_path / "w")


def test_a_bundle_is_read_back_and_anything_else_is_refused(tmp_path: Path):
    with pytest.raises(FailedPrecondition, match=r"services\.experts\.export"):
        read_bundle(tmp_path)
    (tmp_path / BUNDLE).write_text('{"name": "x", "kind": "ffn"}')
    with pytest.raises(FailedPrecondition, match="is no bundle"):
        read_bundle(tmp_path)


def test_without_a_compiler_the_sentence_names_the_remedy(tmp_path: Path, monkeypatch):
    with pytest.raises(FailedPrecondition, match=r"apt install g\+\+"):
        find_compiler({"PATH": str(tmp_path)})
    with pytest.raises(FailedPrecondition, match="nvc"):
        find_compiler({"PATH": "/usr/bin", "CXX": "nvc++"})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(FailedPrecondition, match=r"g\+\+"):
        compile_programs(tmp_path, DENSE, tmp_path / "cache")


def test_a_program_that_was_compiled_before_is_taken_from_the_cache(tmp_path: Path, monkeypatch):
    cache = cache_directory({"XDG_CACHE_HOME": str(tmp_path)})
    assert cache == tmp_path / "understudy" / "packages"
    monkeypatch.setattr("understudy_kernels.packaging.compiling._key", lambda *_: "known")
    monkeypatch.setenv("PATH", "")
    cache.mkdir(parents=True)
    (cache / "known.pt2").write_bytes(b"compiled")
    assert compile_programs(tmp_path, DENSE, cache) == [cache / "known.pt2"]


def test_the_command_checks_lists_and_removes(
    repository: Path, package: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["check", str(package), "--config-digest", DIGEST]) == 0
    assert "fits" in capsys.readouterr().out
    assert main(["check", str(package), "--config-digest", "ef" * 32]) == 1
    assert "config digest" in capsys.readouterr().err
    assert main(["list", str(repository)]) == 0
    assert capsys.readouterr().out == "ffn-x 1\n"
    assert main(["remove", str(repository), "ffn-x", "1"]) == 0
    assert main(["remove", str(repository), "ffn-x", "1"]) == 0
    assert "has no version 1" in capsys.readouterr().out


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Triton" in capsys.readouterr().out


def test_a_manifest_survives_the_way_through_its_file(package: Path):
    manifest = Manifest.read(package)
    (package / MANIFEST).write_text(manifest.to_json())
    assert Manifest.read(package) == manifest
