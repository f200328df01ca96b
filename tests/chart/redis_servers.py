"""Starts the Redis servers of a rendering: its commands, its users, on ports of this machine."""

import base64
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
from redis import Redis, exceptions

from tests.chart.manifests import Manifest, named, pod_of
from understudy.local.ports import free_port
from understudy.local.services import valkey_binary

SECRET: Final = "demo-understudy-redis"
ROLES: Final = ("kv", "control")


@dataclass(frozen=True, slots=True)
class Server:
    """A server as the chart starts it."""

    url: str
    open_url: str
    """The same without user and password."""
    process: "subprocess.Popen[bytes]"


def data_of(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Return what the chart's Secret for the servers holds."""
    data = named(manifests, "Secret", SECRET)["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def start(manifests: Sequence[Manifest], role: str, folder: Path) -> Server:
    """Start the rendered command with its folders and its port moved."""
    secret, port = data_of(manifests), free_port()
    pod = pod_of(named(manifests, "StatefulSet", f"demo-understudy-redis-{role}"))
    [volume] = [one for one in pod["volumes"] if one["name"] == "users"]
    [item] = volume["secret"]["items"]
    users = folder / item["path"]
    users.write_text(secret[item["key"]])
    moved = {"/data": str(folder), "/etc/valkey/users.acl": str(users)}
    words = [moved.get(word, word) for word in pod["containers"][0]["command"]]
    assert str(users) in words
    command = [valkey_binary(), *words[1:], "--port", str(port), "--bind", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = f"127.0.0.1:{port}/0"
    password = urlsplit(secret[f"{role}-url"]).password
    return Server(f"redis://understudy:{password}@{address}", f"redis://{address}", process)


def wait(server: Server) -> None:
    """Wait until a server answers; fail where it ended instead."""
    pause = threading.Event()
    for _ in range(1200):
        assert server.process.poll() is None, "the server refused its command or its users"
        try:
            with Redis.from_url(server.open_url) as client:
                client.ping()
        except exceptions.ConnectionError:
            pause.wait(0.05)
        else:
            return
    pytest.fail("The server did not answer.")
