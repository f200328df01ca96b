"""What a router shows to an engine, and what it checks the engine against; both are files."""

from __future__ import annotations

import ssl
from functools import partial
from pathlib import Path
from typing import Final

from services.router.external.port import EngineMisfit
from understudy.serving import Followed, SettingsError

MAX_KEY_BYTES: Final = 4096


def follow_authorities(path: Path, pool: str) -> Followed[ssl.SSLContext]:
    """Return what the engines of a pool are checked against, from a file that may change.

    Raises SettingsError for a file that holds no certificates.
    """
    followed = Followed(f"authorities of the pool {pool!r}", (path,), partial(_trust, path, pool))
    followed.current()
    return followed


def follow_key(path: Path, pool: str) -> Followed[str]:
    """Return the key of a pool's engines, from a file that may change; it is not read yet."""
    return Followed(f"keys of the pool {pool!r}", (path,), partial(read_key, path))


def _trust(path: Path, pool: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(path))
    except OSError as error:  # ssl's own errors among them
        raise SettingsError(
            f"UNDERSTUDY_ROUTER_POOLS: the ca_file {path} of the pool {pool!r} cannot be read "
            f"as PEM certificates ({type(error).__name__})."
        ) from error


def read_key(path: Path) -> str:
    """Read a key that fits a header; EngineMisfit names the file and never its content."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
        key = data.decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"The key file {path} cannot be read ({type(error).__name__})."
        raise EngineMisfit(problem) from None  # a decoding error holds the key
    if not key or len(data) > MAX_KEY_BYTES or not key.isprintable() or " " in key:
        raise EngineMisfit(f"The key file {path} holds no key of one line.")
    return key
