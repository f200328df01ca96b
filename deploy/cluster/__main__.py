"""`python -m deploy.cluster build | prepare | run | up | exec | down`, from the command line.

`prepare` builds the tools where this machine can run a cluster. Where it cannot it says in one line
what is missing and returns `UNABLE`, which no other command does.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from deploy.cluster import running
from deploy.cluster.building import BUILD_TIMEOUT_S, BuildError, ensure_built
from deploy.cluster.layout import ROOT
from deploy.cluster.machine import check_machine
from deploy.cluster.tools import CONTROL_PLANE

DEFAULT_STATE: Final = ROOT / ".understudy" / "cluster"
UNABLE: Final = 3
MAX_REASON_CHARS: Final = 600


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.cluster", description=__doc__)
    parser.add_argument("--state", type=Path, default=DEFAULT_STATE, help="folder of the cluster")
    commands = parser.add_subparsers(dest="action", required=True)
    commands.add_parser("build", help="build the pinned tools, once per machine")
    prepare = commands.add_parser(
        "prepare", help="build them where a cluster can run, or say why not"
    )
    prepare.add_argument("--within", type=float, default=BUILD_TIMEOUT_S, metavar="SECONDS")
    run = commands.add_parser("run", help="start a cluster, run a command in it, end it")
    commands.add_parser("up", help="start a cluster that stays")
    enter = commands.add_parser("exec", help="run a command in the cluster that is up")
    commands.add_parser("down", help="end the cluster that is up")
    for command in (run, enter):
        command.add_argument("command", nargs=argparse.REMAINDER, help="the command")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Do what the command line says; return the exit status."""
    parsed = parse(arguments)
    state = parsed.state.resolve()
    try:
        if parsed.action == "prepare":
            return prepare(parsed.within)
        if parsed.action == "down":
            running.stop_cluster(state)
            return 0
        folders = ensure_built(CONTROL_PLANE, os.environ, running.report)
        environ = running.inside_environment(folders, os.environ)
        if parsed.action == "up":
            running.start_cluster(state, environ)
            running.report(
                f"ready: python -m deploy.cluster --state {state} exec kubectl get nodes"
            )
        elif parsed.action in ("run", "exec"):
            command = parsed.command[1:] if parsed.command[:1] == ["--"] else parsed.command
            if not command:
                raise running.RunError(f"{parsed.action} needs a command")
            if parsed.action == "run":
                return running.run_cluster(state, command, environ)
            running.enter_cluster(state, command, environ)
    except (BuildError, running.RunError) as error:
        running.report(f"cluster: {error}")
        return 1
    return 0


def prepare(within_s: float) -> int:
    """See that a cluster can run here and has its tools; return 0, or `UNABLE`."""
    try:
        check_machine(os.environ)
        ensure_built(CONTROL_PLANE, os.environ, running.report, within_s)
    except (BuildError, running.RunError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON_CHARS]
        running.report(f"cluster: this machine cannot run one: {reason}")
        return UNABLE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
