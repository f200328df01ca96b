"""Builds the images with the container engine that is there: `make images`.

`python deploy/images/build.py [--prefix NAME] [TARGET ...]` tags each as
NAME-TARGET:VERSION and NAME-TARGET:VERSION-gCOMMIT (with -dirty where the checkout was changed).
`triton` stands on NVIDIA's server, which lies in a registry of its own: it is built only where the
variable TRITON_IMAGE names that image. Needs an engine, git and Python 3.11, and nothing that is
installed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
DOCKERFILE: Final = ROOT / "deploy" / "images" / "Dockerfile"
TARGETS: Final = ("router", "worker", "distiller", "triton")
TRITON: Final = "triton"
BASE_OF_TRITON: Final = "TRITON_IMAGE"
PREFIX: Final = "understudy"
LABELS: Final = "org.opencontainers.image"
ENGINES: Final = {
    "docker": ("docker", "info", "--format", "{{.ServerVersion}}"),
    "podman": ("podman", "info", "--format", "{{.Version.Version}}"),
    "buildah": ("buildah", "version"),
}
"""By preference; what each is asked to see that it works."""
ASK_TIMEOUT_S: Final = 30

Ask = Callable[[Sequence[str]], str | None]
"""Runs a command and returns None, or why it failed."""


class EngineError(Exception):
    """No engine can build here; the message says what was tried."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is built."""

    version: str
    revision: str
    """Commit, with -dirty where the checkout was changed; empty outside a repository."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of an image."""
        both = (self.version, f"{self.version}-g{self.revision}")
        return both if self.revision else both[:1]


def find_engine(which: Callable[[str], str | None], ask: Ask) -> str:
    """Return the first engine that works. Raises EngineError with each one's reason."""
    tried = []
    for name, question in ENGINES.items():
        if which(name) is None:
            tried.append(f"{name} is not installed")
        elif (reason := ask(question)) is None:
            return name
        else:
            tried.append(f"{name} does not work ({reason})")
    raise EngineError(
        f"Images need a container engine: {'; '.join(tried)}. Install one of them, or start its "
        "daemon, and run `make images` again; nothing else of Understudy needs one."
    )


def labels(target: str, source: Source) -> dict[str, str]:
    """Return what an image says of itself; NVIDIA's below one of ours has a licence of its own."""
    found = {"title": f"{PREFIX}-{target}", "version": source.version}
    found["revision"] = source.revision or "unknown"
    return found if target == TRITON else found | {"licenses": "Apache-2.0"}


def chosen(asked: Sequence[str], base_of_triton: str) -> list[str]:
    """Return what is built; with nothing asked for, all that has a base."""
    return list(asked) or [name for name in TARGETS if name != TRITON or base_of_triton]


def command(
    engine: str, target: str, prefix: str, source: Source, base_of_triton: str = ""
) -> list[str]:
    """Return the command that builds one image."""
    build = [engine, "build", "--file", str(DOCKERFILE), "--target", target]
    for name, value in labels(target, source).items():
        build += ["--label", f"{LABELS}.{name}={value}"]
    if target == TRITON:
        build += ["--build-arg", f"{BASE_OF_TRITON}={base_of_triton}"]
    for tag in source.tags:
        build += ["--tag", f"{prefix}-{target}:{tag}"]
    return [*build, str(ROOT)]


def read_source() -> Source:
    """Return the version of pyproject.toml and the commit that is checked out."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    git += ["--match", "no tag is meant"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return Source(version, "")
    return Source(version, found.stdout.strip())


def ask(question: Sequence[str]) -> str | None:
    """Run a command that ends soon; return its last words where it fails."""
    try:
        done = subprocess.run(
            question, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    said = (done.stderr.strip() or done.stdout.strip() or "no words").splitlines()[-1]
    return None if done.returncode == 0 else said


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Build; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build the container images.")
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="default: all that have a base"
    )
    parser.add_argument("--prefix", default=PREFIX, help="registry and first part of the names")
    parsed = parser.parse_args(arguments)
    unknown = set(parsed.targets) - set(TARGETS)
    if unknown:
        parser.error(f"there is no image {', '.join(sorted(unknown))}; known: {', '.join(TARGETS)}")
    base = environ.get(BASE_OF_TRITON, "")
    targets = chosen(parsed.targets, base)
    if TRITON in targets and not base:
        parser.error(
            f"the image {TRITON} needs a base: set {BASE_OF_TRITON} to NVIDIA's server for Python "
            "3.12 (tritonserver:25.06-py3), registry included"
        )
    try:
        engine = find_engine(shutil.which, ask)
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    source = read_source()
    for target in targets:
        building = command(engine, target, parsed.prefix, source, base)
        print(" ".join(building), flush=True)
        status = subprocess.run(building, check=False).returncode
        if status:
            print(f"The image {target} was not built: {engine} exited with {status}.")
            return status
    if TRITON not in targets and not parsed.targets:
        print(f"The image {TRITON} was left out: {BASE_OF_TRITON} names no server to build it on.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
