"""Reads `host:port` addresses."""

from understudy.serving.settings import SettingsError

_MAX_PORT = 65_535


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`; port 0 lets the system choose one."""
    host, separator, port = address.rpartition(":")
    is_valid = separator and host and port.isascii() and port.isdigit() and int(port) <= _MAX_PORT
    if not is_valid or (":" in host and not host.startswith("[")):
        raise SettingsError(
            f"The address {address!r} is not of the form host:port; "
            "write for example 127.0.0.1:8080 or [::1]:8080."
        )
    return host.strip("[]"), int(port)
