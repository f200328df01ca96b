"""System calls for namespaces and mounts that Python's library lacks, checked for errors.

Linux 5.12 or newer (mount_setattr). Nothing here needs root: the callers hold their rights in a
user namespace.
"""

import ctypes
import os
from pathlib import Path
from typing import Final

NEW_MOUNTS: Final = 0x00020000
NEW_UTS: Final = 0x04000000
NEW_IPC: Final = 0x08000000
NEW_USER: Final = 0x10000000
NEW_PIDS: Final = 0x20000000
NEW_NET: Final = 0x40000000

NO_SUID: Final = 0x2
NO_DEVICES: Final = 0x4
NO_EXEC: Final = 0x8
_READ_ONLY: Final = 0x1
_BIND: Final = 0x1000
_RECURSIVE: Final = 0x4000
_PRIVATE: Final = 0x40000
_DETACH: Final = 2

_MOUNT_SETATTR: Final = 442
_CURRENT_FOLDER: Final = -100
_AT_RECURSIVE: Final = 0x8000
_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}

_SET_PARENT_DEATH_SIGNAL: Final = 1
_DROP_BOUNDING: Final = 24
_NO_NEW_PRIVILEGES: Final = 38
_CAPABILITY_VERSION: Final = 0x20080522


def _call(name: str, *arguments: object) -> int:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    result: int = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Move the calling process into new namespaces of the given kinds."""
    _call("unshare", flags)


def enter(pid: int, kinds: tuple[str, ...]) -> None:
    """Join the named namespaces (`net`, `mnt` ...) of a process, in that order."""
    files = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds]
    for file in files:
        _call("setns", file, 0)
        os.close(file)


def mount(kind: str, target: Path, flags: int = 0, options: str = "") -> None:
    """Mount a new file system such as `tmpfs` or `proc`."""
    _call("mount", kind.encode(), bytes(target), kind.encode(), flags, options.encode())


def make_private(target: Path) -> None:
    """Keep mounts below the target from reaching other namespaces."""
    _call("mount", None, bytes(target), None, _RECURSIVE | _PRIVATE, None)


def bind(source: Path, target: Path, *, is_read_only: bool) -> None:
    """Show a file or folder, with whatever is mounted below it, at another place."""
    _call("mount", bytes(source), bytes(target), None, _BIND | _RECURSIVE, None)
    if is_read_only:
        make_read_only(target, is_recursive=True)


def make_read_only(target: Path, *, is_recursive: bool) -> None:
    """Forbid writing to the target and, if asked to, to everything mounted below it."""
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    place = ctypes.c_char_p(bytes(target))
    flags = _AT_RECURSIVE if is_recursive else 0
    _call("syscall", _MOUNT_SETATTR, _CURRENT_FOLDER, place, flags, attributes, size)


def unmount(target: Path) -> None:
    """Take a mount away, even while it is in use."""
    _call("umount2", bytes(target), _DETACH)


def change_root(target: Path) -> None:
    """Make the mounted target the root; nothing outside of it can be reached afterwards."""
    os.chdir(target)
    _call("syscall", _PIVOT_ROOT[os.uname().machine], b".", b".")
    unmount(Path())
    os.chdir("/")


def become(user: int, group: int) -> None:
    """Enter a user namespace that knows one user only: the given one, which is really the caller.

    It can make no further ones, as the default seccomp profile of container runtimes has it.
    """
    outer_user, outer_group = os.geteuid(), os.getegid()
    unshare(NEW_USER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {outer_user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {outer_group} 1")
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def drop_capabilities() -> None:
    """Give up every capability, now and for programs started later."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        _call("prctl", _DROP_BOUNDING, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())


def forbid_new_privileges() -> None:
    """Keep set-user-id programs from giving any right."""
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def set_host_name(name: str) -> None:
    """Name the machine that processes of this UTS namespace see."""
    _call("sethostname", name.encode()[:63], len(name.encode()[:63]))


def die_with_parent(signal: int, parent: int) -> None:
    """Have the kernel send the signal when the parent ends; end at once if it is gone already."""
    _call("prctl", _SET_PARENT_DEATH_SIGNAL, signal, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
