"""`python -m understudy_kernels.package`: compile bundles into a Triton model repository.

A bundle comes from who knows the model: `python -m services.experts.export`.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from understudy.errors import UnderstudyError
from understudy_kernels.packaging import (
    check_package,
    compile_programs,
    publish,
    read_bundle,
    remove_version,
    versions,
)
from understudy_kernels.packaging.compiling import cache_directory

FAILED: Final = 1


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    chosen = _parser().parse_args(arguments)
    commands = {"build": _build, "check": _check, "list": _list, "remove": _remove}
    try:
        for line in commands[chosen.command](chosen):
            sys.stdout.write(f"{line}\n")
    except UnderstudyError as error:
        sys.stderr.write(f"{error.message}\n")
        return FAILED
    return 0


def build(bundle_dir: Path, repository: Path, *, threads: int = 1, name: str = "") -> int:
    """Compile a bundle, or take it from the cache, and publish it; returns the version.

    Raises FailedPrecondition without a compiler, and for a bundle that is none.
    """
    bundle = read_bundle(bundle_dir)
    bundle = replace(bundle, name=name or bundle.name)
    compiled = compile_programs(bundle_dir, bundle, cache_directory(os.environ))
    return publish(repository, bundle_dir, bundle, compiled, threads)


def _build(chosen: argparse.Namespace) -> list[str]:
    name = chosen.name or read_bundle(chosen.bundle).name
    version = build(chosen.bundle, chosen.repository, threads=chosen.threads, name=name)
    return [f"{chosen.repository / name / str(version)}"]


def _check(chosen: argparse.Namespace) -> list[str]:
    manifest = check_package(chosen.package, chosen.config_digest)
    return [f"{chosen.package}: {manifest.kind}, config digest {manifest.config_digest}: fits"]


def _list(chosen: argparse.Namespace) -> list[str]:
    found = sorted(entry.name for entry in chosen.repository.glob("[!.]*") if entry.is_dir())
    return [f"{name} {version}" for name in found for version in versions(chosen.repository, name)]


def _remove(chosen: argparse.Namespace) -> list[str]:
    if chosen.version not in versions(chosen.repository, chosen.name):
        return [f"{chosen.name} has no version {chosen.version}."]
    remove_version(chosen.repository, chosen.name, chosen.version)
    return []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m understudy_kernels.package", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="compile a bundle and publish it as a new version")
    building.add_argument("bundle", type=Path, help="folder that the export wrote")
    building.add_argument("--repository", type=Path, required=True, help="Triton's model folder")
    building.add_argument("--name", help="the model's name; by default the bundle's")
    building.add_argument("--threads", type=int, default=1, help="torch threads of the backend")
    checking = commands.add_parser("check", help="say whether this machine may run a package")
    checking.add_argument("package", type=Path, help="folder of one version")
    checking.add_argument("--config-digest", help="digest (hex) of the model it must be of")
    listing = commands.add_parser("list", help="list models and versions")
    listing.add_argument("repository", type=Path)
    removing = commands.add_parser("remove", help="remove a version that is not loaded")
    removing.add_argument("repository", type=Path)
    removing.add_argument("name")
    removing.add_argument("version", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
