"""Builds the pinned tools from Go modules, prints progress, and refuses clearly where it cannot.

A build ends in a folder that is renamed into place when it is whole, so an interrupted one leaves
nothing that looks finished; Go's own cache lets it go on where it stopped.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

from deploy.cluster.tools import (
    GO_MODULE_VERSION,
    Tool,
    binaries_folder,
    is_built,
)

BUILD_TIMEOUT_S: Final = 3600
OLDEST_GO: Final = (1, 26)
NUM_ERROR_LINES: Final = 20
PACKAGES_PER_LINE: Final = 200

Report = Callable[[str], None]


class BuildError(Exception):
    """A tool could not be built; the message ends with Go's last lines."""


def ensure_built(
    tools: Iterable[Tool],
    environ: Mapping[str, str],
    report: Report,
    within_s: float = BUILD_TIMEOUT_S,
) -> list[Path]:
    """Build what is missing and return the folders with binaries, in the order of the tools.

    Raises BuildError once the builds have taken `within_s` together.
    """
    tools, deadline_s = tuple(tools), time.monotonic() + within_s
    for tool in tools:
        if not is_built(tool, environ):
            target, left_s = binaries_folder(tool, environ), deadline_s - time.monotonic()
            build_tool(tool, target, environ, report, left_s)
    return [binaries_folder(tool, environ) for tool in tools]


def build_tool(
    tool: Tool,
    target: Path,
    environ: Mapping[str, str],
    report: Report,
    within_s: float = BUILD_TIMEOUT_S,
) -> None:
    """Build a tool's binaries into a folder of their own; raises BuildError."""
    deadline_s = time.monotonic() + within_s
    _build(_Builder(tool, target, find_go(environ), environ, report, deadline_s))


def find_go(environ: Mapping[str, str]) -> str:
    """Return the Go command, or refuse with what to install."""
    needed = ".".join(map(str, OLDEST_GO))
    go = shutil.which("go", path=environ.get("PATH"))
    if go is None:
        raise BuildError(
            f"Go is not installed: the pinned tools are built with it, once per machine; "
            f"install Go {needed} or newer and see that `go` is on PATH"
        )
    command = [go, "env", "GOVERSION"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    match = re.match(r"go(\d+)\.(\d+)", answer.stdout)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_GO:
        found = answer.stdout.strip() or answer.stderr.strip()
        raise BuildError(f"{go} is {found!r}: the pinned tools need Go {needed} or newer")
    return go


def staging_replacements(go_mod: str, version: str) -> list[str]:
    """Name the published version of each module that `go_mod` requires as v0.0.0."""
    modules = sorted(set(re.findall(r"^\s*(k8s\.io/[a-z0-9-]+) v0\.0\.0$", go_mod, re.MULTILINE)))
    return [f"{module} => {module} {version}" for module in modules]


def module_files(tool: Tool, replacements: Sequence[str]) -> dict[str, str]:
    """Return the module that requires the tool: its go.mod and one Go file."""
    go_mod = [f"module tools/{tool.name}", f"go {GO_MODULE_VERSION}"]
    go_mod += [f"require {tool.module} {tool.version}"]
    go_mod += [f"replace {line}" for line in replacements]
    imports = [f'import _ "{package}"' for package in tool.commands.values()]
    source = ["//go:build tools", "", "package tools", "", *imports]
    return {"go.mod": "\n".join(go_mod) + "\n", "tools.go": "\n".join(source) + "\n"}


def build_command(go: str, tool: Tool, output: Path, package: str) -> list[str]:
    """Return the command that builds one binary."""
    values = [f"-X {name}={value}" for name, value in tool.linker_values.items()]
    tags = ["-tags", ",".join(tool.tags)] if tool.tags else []
    flags = ["-v", "-trimpath", "-buildvcs=false", *tags, "-ldflags", " ".join(["-s -w", *values])]
    return [go, "build", *flags, "-o", str(output), package]


@dataclass(frozen=True, slots=True)
class _Builder:
    """One tool and what it is built with."""

    tool: Tool
    target: Path
    go: str
    environ: Mapping[str, str]
    report: Report
    deadline_s: float

    @property
    def name(self) -> str:
        """The tool as people know it."""
        return f"{self.tool.name} {self.tool.version}"

    def left_s(self) -> float:
        """Return the time that is left."""
        return max(self.deadline_s - time.monotonic(), 0.0)

    def late(self) -> BuildError:
        """Return the refusal to go on."""
        return BuildError(
            f"{self.name} was not built in the time there was; another run goes on from there"
        )


def _build(builder: _Builder) -> None:
    tool, go, report, target = builder.tool, builder.go, builder.report, builder.target
    started_s = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    report(f"{builder.name}: building with {go}, once per machine")
    go_environ = {**builder.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    builder = replace(builder, environ=go_environ)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        module, output = Path(scratch) / "module", Path(scratch) / "bin"
        module.mkdir()
        output.mkdir()
        replacements = [*tool.replacements, *_staging(builder)]
        for name, text in module_files(tool, replacements).items():
            (module / name).write_text(text)
        runner = _Runner(builder, module)
        runner.run([go, "mod", "tidy"])
        for name, package in tool.commands.items():
            runner.run(build_command(go, tool, output / name, package))
        if target.exists():
            shutil.rmtree(target)
        output.rename(target)
    report(f"{builder.name}: built in {time.monotonic() - started_s:.0f} s")


def _staging(builder: _Builder) -> list[str]:
    tool = builder.tool
    if not tool.staging:
        return []
    command = [builder.go, "mod", "download", "-json", f"{tool.module}@{tool.version}"]
    with tempfile.TemporaryDirectory() as elsewhere:
        try:
            answer = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=builder.left_s(),
                check=False,
                cwd=elsewhere,
                env=dict(builder.environ),
            )
        except subprocess.TimeoutExpired as error:
            raise builder.late() from error
    if answer.returncode:
        raise BuildError(f"{' '.join(command)} failed: {answer.stdout}{answer.stderr}")
    return staging_replacements(Path(json.loads(answer.stdout)["GoMod"]).read_text(), tool.staging)


class _Runner:
    """Runs Go in one module and counts the packages that it names while it works."""

    def __init__(self, builder: _Builder, folder: Path) -> None:
        self._builder, self._folder = builder, folder
        self._started_s, self._num_packages = time.monotonic(), 0

    def run(self, command: Sequence[str]) -> None:
        """Run one command to its end; raise with its last lines if it fails."""
        with subprocess.Popen(
            command,
            cwd=self._folder,
            env=dict(self._builder.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stderr is not None
            # Compilers are its children, and hold the pipe that is read here.
            watchdog = threading.Timer(self._builder.left_s(), _kill_all, (process,))
            watchdog.start()
            try:
                last_lines = self._follow(process.stderr)
                status = process.wait()
            finally:
                watchdog.cancel()
                _kill_all(process)
        if status and not self._builder.left_s():
            raise self._builder.late()
        if status:
            name = self._builder.tool.name
            what = f"{name}: {' '.join(command[:3])} ended with status {status}"
            raise BuildError("\n".join([what, *last_lines]))

    def _follow(self, lines: IO[str]) -> deque[str]:
        last_lines: deque[str] = deque(maxlen=NUM_ERROR_LINES)
        for line in lines:
            last_lines.append(line.rstrip())
            if line.startswith("go: "):
                continue
            self._num_packages += 1
            if self._num_packages % PACKAGES_PER_LINE == 0:
                elapsed_s = time.monotonic() - self._started_s
                self._builder.report(
                    f"{self._builder.name}: {self._num_packages} packages compiled, "
                    f"{elapsed_s:.0f} s"
                )
        return last_lines


def _kill_all(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
