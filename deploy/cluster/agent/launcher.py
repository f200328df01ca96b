"""Runs inside the namespaces of a pod: `python -m deploy.cluster.agent.launcher` with a JSON order.

The agent sends the order on standard input and reads reports, one JSON object a line, from file
descriptor 3. A `sandbox` holds network, IPC and host name of a pod; a `container` gets a root and a
process tree of its own in the sandbox's network; an `exec` joins a running container. Only the
standard library, and little of it: this starts for every container and exec probe.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final, NoReturn, TypedDict

from deploy.cluster import namespaces

REPORTS: Final = 3
CANNOT_START: Final = 128
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


class SandboxOrder(TypedDict):
    """What a sandbox is made of."""

    hostname: str
    address: str
    gateway: str
    prefix_length: int
    peer: str


class Mount(TypedDict):
    """A file or folder of this machine shown inside a container."""

    source: str
    target: str
    is_read_only: bool


class ProcessOrder(TypedDict):
    """A program, and who runs it with what rights."""

    command: list[str]
    environment: dict[str, str]
    folder: str
    user: int
    group: int
    keeps_capabilities: bool
    may_gain_privileges: bool


class ContainerOrder(ProcessOrder):
    """A program in a root of its own."""

    sandbox: int
    root: str
    mounts: list[Mount]
    links: dict[str, str]
    is_root_read_only: bool


class ExecOrder(ProcessOrder):
    """A program in a container that runs already."""

    target: int


def report(**values: object) -> None:
    """Send one line to the agent."""
    os.write(REPORTS, json.dumps(values).encode() + b"\n")


def run_sandbox(order: SandboxOrder) -> NoReturn:
    """Make a network with one address on the agent's bridge, and hold it until killed."""
    namespaces.unshare(namespaces.NEW_NET | namespaces.NEW_IPC | namespaces.NEW_UTS)
    namespaces.set_host_name(order["hostname"])
    commands = [
        "link set lo up",
        f"link add eth0 type veth peer name {order['peer']} netns {os.getppid()}",
        f"address add {order['address']}/{order['prefix_length']} dev eth0",
        "link set eth0 up",
        f"route add default via {order['gateway']}",
    ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands).encode(), check=True)
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
    report(ready=True)
    while True:
        signal.pause()


def run_container(order: ContainerOrder) -> NoReturn:
    """Start the program as the first process of a new process tree and report how it ends."""
    namespaces.enter(order["sandbox"], ("net", "ipc", "uts"))
    namespaces.unshare(namespaces.NEW_MOUNTS | namespaces.NEW_PIDS)
    pid = os.fork()
    if pid == 0:
        _in_container(order)
    _see_through(pid)


def run_exec(order: ExecOrder) -> NoReturn:
    """Run a program in the namespaces of a container, with the rights that its own program has."""
    namespaces.enter(order["target"], ("pid", "net", "ipc", "uts", "mnt", "user"))
    pid = os.fork()
    if pid == 0:
        _replaced(order)
    _see_through(pid)


def _in_container(order: ContainerOrder) -> NoReturn:
    # The agent's folders are gone after the change of root, so everything is opened before.
    try:
        _build_root(order)
        namespaces.change_root(Path(order["root"]))
        namespaces.become(order["user"], order["group"])
    except OSError as error:
        report(error=str(error))
        os._exit(CANNOT_START)
    _replaced(order)


def _replaced(order: ProcessOrder) -> NoReturn:
    try:
        if not order["keeps_capabilities"]:
            namespaces.drop_capabilities()
        if not order["may_gain_privileges"]:
            namespaces.forbid_new_privileges()
        # After the change of user, which would clear it. The parent is in another process tree.
        namespaces.die_with_parent(signal.SIGKILL, 0)
        os.chdir(order["folder"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (*_FORWARDED, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        os.execvpe(order["command"][0], order["command"], order["environment"])  # noqa: S606
    except OSError as error:
        report(error=f"{order['command'][0]}: {error}")
    os._exit(CANNOT_START)


def _see_through(pid: int) -> NoReturn:
    for number in _FORWARDED:
        signal.signal(number, lambda received, _frame: os.kill(pid, received))
    report(pid=pid)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    report(exit_code=code if code >= 0 else 128 - code, signal=max(0, -code))
    os._exit(0)


def _build_root(order: ContainerOrder) -> None:
    root = Path(order["root"])
    namespaces.make_private(Path("/"))
    namespaces.mount("tmpfs", root, namespaces.NO_SUID | namespaces.NO_DEVICES, "mode=755")
    for folder in ("dev", "proc", "sys", "tmp", "etc", "run", "var"):
        (root / folder).mkdir()
    (root / "tmp").chmod(0o1777)
    for target, source in order["links"].items():
        _inside(root, target).symlink_to(source)
    for name in _DEVICES:
        (root / "dev" / name).touch()
        namespaces.bind(Path("/dev") / name, root / "dev" / name, is_read_only=False)
    for name, source in {"fd": "/proc/self/fd", "stdout": "fd/1", "stderr": "fd/2"}.items():
        (root / "dev" / name).symlink_to(source)
    flags = namespaces.NO_SUID | namespaces.NO_DEVICES | namespaces.NO_EXEC
    namespaces.mount("proc", root / "proc", flags)
    namespaces.bind(Path("/sys"), root / "sys", is_read_only=True)
    for mount in sorted(order["mounts"], key=lambda mount: mount["target"].count("/")):
        _place(root, mount)
    if order["is_root_read_only"]:
        namespaces.make_read_only(root, is_recursive=False)


def _place(root: Path, mount: Mount) -> None:
    source, target = Path(mount["source"]), _inside(root, mount["target"])
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    namespaces.bind(source, target, is_read_only=mount["is_read_only"])


def _inside(root: Path, target: str) -> Path:
    return root / os.path.normpath(target).lstrip("/")


def main() -> NoReturn:
    """Carry out the order; arguments: its kind, the agent's process id, where reports go."""
    os.dup2(int(sys.argv[3]), REPORTS, inheritable=False)
    namespaces.die_with_parent(signal.SIGKILL, int(sys.argv[2]))
    order = json.load(sys.stdin)
    try:
        match sys.argv[1]:
            case "sandbox":
                run_sandbox(order)
            case "container":
                run_container(order)
            case _:
                run_exec(order)
    except (OSError, subprocess.CalledProcessError) as error:
        report(error=str(error))
        os._exit(CANNOT_START)


if __name__ == "__main__":
    main()
