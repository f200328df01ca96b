"""What a router shows to an engine, and what it checks the engine against; both are files."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from services.router.external.port import EngineMisfit
from understudy.serving import SettingsError

MAX_KEY_BYTES: Final = 4096


def trust(url: str, ca_file: Path | None, pool: str) -> ssl.SSLContext | bool:
    """Return what certificates are checked against: the pool's own file, or the system's.

    Raises SettingsError for a file that holds no certificates.
    """
    if not url.startswith("https:") or ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except OSError as error:  # ssl's own errors among them
        raise SettingsError(
            f"UNDERSTUDY_ROUTER_POOLS: the ca_file {ca_file} of the pool {pool!r} cannot be read "
            f"as PEM certificates ({type(error).__name__})."
        ) from error


def read_key(path: Path | None) -> str:
    """Read a key that fits a header; EngineMisfit names the file and never its content."""
    if path is None:
        return ""
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
