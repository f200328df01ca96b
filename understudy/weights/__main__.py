"""`python -m understudy.weights fetch | wait | sums | begin | step | adopt`."""

import argparse
import errno
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from understudy.errors import FailedPrecondition, InvalidArgument, UnderstudyError
from understudy.telemetry import configure_logging
from understudy.weights.contents import sums_of
from understudy.weights.credentials import Secret
from understudy.weights.fetching import Fetcher
from understudy.weights.making import FILES
from understudy.weights.settings import FOLDER, FetchSettings, ModelSource
from understudy.weights.store import Store
from understudy.weights.waiting import wait_for
from understudy.weights.web import Web

FAILED: Final = 1
BAD_SETTINGS: Final = 2
REFUSED: Final = 3
"""What trying again does not mend: a Job ends at once."""
TERMINATED: Final = 143
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
POD: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
PARTS: Final = ("bundle", FILES)
log = logging.getLogger("understudy.weights")


def fetch(environ: Mapping[str, str]) -> None:
    """Publish all models of the settings and remove those of former runs."""
    settings = FetchSettings.from_env(environ)
    models, store = settings.sources(), Store(settings.directory)
    folders = [model.folder for model in models]
    with store.locked():
        store.want(settings.owner, folders)
        fetcher = Fetcher(store, open_web)
        for model in models:
            try:
                fetcher.fetch(model)
            except OSError as error:
                if error.errno not in FULL or not make_room(store, settings.owner, folders):
                    raise
                fetcher.fetch(model)
        prune(store, settings.owner, folders)


def begin(directory: Path, folder: str, work: str) -> None:
    """Make the folder that the steps of a Job fill, with what others finished for it."""
    store = Store(directory)
    with store.locked():
        store.workshop.begin(folder, work)


def step(directory: Path, folder: str, work: str, part: str, command: Sequence[str]) -> int:
    """Run a step of a Job, unless what it makes is there or nobody needs it; returns its status."""
    store = Store(directory)
    if store.is_whole(folder):
        log.info("%s is there and is what it must be: nothing is made.", folder)
        return 0
    if store.workshop.is_finished(work, part):
        log.info("%s was finished before: it is not made again.", part)
        return 0
    if not command:
        raise InvalidArgument("`step` needs a program and its arguments after the part.")
    # A container ends with this process, so that nothing is left when it is told to end.
    status = subprocess.run(command, check=False).returncode  # noqa: S603 - the chart's words
    if status == 0:
        store.workshop.finish(work, part)
    return status if status >= 0 else FAILED


def adopt(directory: Path, folder: str, work: str) -> None:
    """Publish what the steps of a Job made in the folder that `begin` gave them."""
    store = Store(directory)
    with store.locked():
        is_new = store.adopt(folder, work)
        prune(store, folder.rpartition("-")[0], [folder])
    log.info("%s %s.", folder, "is published" if is_new else "was there already and stays")


def prune(store: Store, owner: str, folders: Sequence[str]) -> None:
    """Remove what its owner had earlier than the folders that are published now."""
    for removed in store.prune(owner, folders):
        log.info("%s was removed: nothing wants it any more.", removed)


def make_room(store: Store, owner: str, folders: Sequence[str]) -> bool:
    """Give up, in a volume that is full, what only a rollback would want; False: there is none."""
    removed = store.make_room(owner, folders)
    for name in removed:
        log.warning("%s was removed: the volume has no room for it and for what is new.", name)
    return bool(removed)


def open_web(model: ModelSource) -> Web:
    """Return connections that trust the Secret's `ca.crt`, where it has one."""
    has_own = Secret(model.credentials).find("ca.crt") is not None
    return Web(model.credentials / "ca.crt" if has_own and model.credentials else None)


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    # The first process of a container gets no default action for SIGTERM. What is on disk stays
    # good: parts are hashed again before they are gone on with.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
    configure_logging("weights", "info")
    try:
        return _run(chosen)
    except UnderstudyError as error:
        sys.stderr.write(f"understudy weights: {error.message}\n")
        if isinstance(error, FailedPrecondition):
            return REFUSED
        return BAD_SETTINGS if isinstance(error, InvalidArgument) else FAILED
    except OSError as error:
        sys.stderr.write(f"understudy weights: the volume cannot be used: {error}\n")
        return FAILED


def _run(chosen: argparse.Namespace) -> int:
    match chosen.command:
        case "fetch":
            fetch(os.environ)
        case "wait":
            wait_for(chosen.directory, chosen.folders, limit_s=chosen.limit_s)
        case "begin":
            begin(chosen.directory, chosen.folder, chosen.work)
        case "step":
            return step(chosen.directory, chosen.folder, chosen.work, chosen.part, chosen.program)
        case "adopt":
            adopt(chosen.directory, chosen.folder, chosen.work)
        case _:
            sys.stdout.write(sums_of(chosen.folder).text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m understudy.weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="publish what UNDERSTUDY_WEIGHTS_MODELS names")
    waiting = commands.add_parser("wait", help="wait until folders are published")
    waiting.add_argument("directory", type=Path, help="the volume")
    waiting.add_argument("folders", nargs="+", help="names of models' folders")
    waiting.add_argument("--limit-s", type=float, default=3600, help="seconds until it fails")
    sums = commands.add_parser("sums", help="print the sums of a folder on this machine")
    sums.add_argument("folder", type=Path)
    _add_steps(commands)
    return parser


def _add_steps(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    beginning = commands.add_parser("begin", help="make the folder that a Job's steps fill")
    doing = commands.add_parser("step", help="run a step, unless what it makes is there")
    adopting = commands.add_parser("adopt", help="publish what the steps made")
    for one in (beginning, doing, adopting):
        one.add_argument("directory", type=Path, help="the volume")
        one.add_argument("folder", type=folder_name, help="name of the published folder")
        one.add_argument("work", type=work_name, help="name of who makes it: the pod's")
    doing.add_argument("part", choices=PARTS, help="what the step makes, a folder of the work")
    doing.add_argument("program", nargs=argparse.REMAINDER, help="program and its arguments")


def folder_name(text: str) -> str:
    """Return the name of a published folder. Raises ValueError for another one."""
    if FOLDER.fullmatch(text) is None:
        raise ValueError
    return text


def work_name(text: str) -> str:
    """Return the name of a pod. Raises ValueError for what is none."""
    if POD.fullmatch(text) is None:
        raise ValueError
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
