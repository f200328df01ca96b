"""The network of a pod, and what a runtime makes of its specification."""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from deploy.cluster.agent.api import Json
from deploy.cluster.agent.environment import ConfigError, ImageError
from deploy.cluster.agent.images import Image, repository_name
from deploy.cluster.agent.launcher import Mount
from deploy.cluster.agent.launching import Launched, Launcher, LaunchError
from deploy.cluster.layout import BRIDGE, DNS_SERVICE, DOMAIN, GATEWAY, PREFIX_LENGTH

_NSSWITCH: Final = "passwd: files\ngroup: files\nhosts: files dns\n"


async def make_network(hostname: str, address: str, peer: str, log: Path) -> Launched:
    """Start the process that holds a pod's network, and plug it into the bridge."""
    order = {
        "hostname": hostname,
        "address": address,
        "gateway": GATEWAY,
        "prefix_length": PREFIX_LENGTH,
        "peer": peer,
    }
    with log.open("ab") as output:
        launched = await Launcher("sandbox", order, output).start()
    process = await asyncio.create_subprocess_exec(
        "ip", "link", "set", peer, "master", BRIDGE, "up"
    )
    if await process.wait():
        launched.kill()
        raise LaunchError(f"{peer} could not be plugged into {BRIDGE}")
    return launched


def hosts(names: Iterable[str], address: str, aliases: Iterable[Json]) -> str:
    """Return a pod's hosts file: itself and what its specification adds; the rest is DNS."""
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines.append("\t".join([address, *names]))
    lines += ["\t".join([alias["ip"], *alias.get("hostnames", [])]) for alias in aliases]
    return "\n".join(lines) + "\n"


def resolver(namespace: str) -> str:
    """Return a pod's resolv.conf: short names of Services mean those of its own namespace."""
    search = f"{namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}"
    return f"nameserver {DNS_SERVICE}\nsearch {search}\noptions ndots:5\n"


def names_of(pod: Json) -> list[str]:
    """Return the names of a pod in its hosts file, the longest first."""
    spec, metadata = pod["spec"], pod["metadata"]
    hostname = spec.get("hostname", metadata["name"])
    if not spec.get("subdomain"):
        return [hostname]
    full = f"{hostname}.{spec['subdomain']}.{metadata['namespace']}.svc.{DOMAIN}"
    return [full, hostname]


def write_system_files(pod: Json, address: str, folder: Path) -> list[Mount]:
    """Write the files of `/etc` that every container of the pod has."""
    folder.mkdir(parents=True, exist_ok=True)
    user = pod["spec"].get("securityContext", {}).get("runAsUser", 0)
    accounts = {0: "root:x:0:0:root:/:/bin/sh"} | {user: f"user:x:{user}:{user}::/:/bin/sh"}
    if user == 0:
        accounts = {0: "root:x:0:0:root:/:/bin/sh"}
    texts = {
        "hosts": hosts(names_of(pod), address, pod["spec"].get("hostAliases", [])),
        "resolv.conf": resolver(pod["metadata"]["namespace"]),
        "hostname": names_of(pod)[-1] + "\n",
        "nsswitch.conf": _NSSWITCH,
        "passwd": "\n".join(accounts.values()) + "\n",
        "group": "".join(f"group{number}:x:{number}:\n" for number in accounts),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [_mount(folder / name, f"/etc/{name}") for name in texts]


def _mount(source: Path, target: str, *, is_read_only: bool = True) -> Mount:
    return {"source": str(source), "target": target, "is_read_only": is_read_only}


def find_image(reference: str, images: Mapping[str, Image]) -> Image:
    """Return what stands in for an image."""
    image = images.get(repository_name(reference))
    if image is None:
        known = ", ".join(sorted(images))
        raise ImageError(f"nothing stands in for image {reference!r}; known are: {known}")
    return image


def user_of(pod: Json, container: Json) -> tuple[int, int]:
    """Return user and group of a container. Raises ConfigError for root where that is forbidden."""
    whole = {
        **pod["spec"].get("securityContext", {}),
        **container.get("securityContext", {}),
    }
    user = int(whole.get("runAsUser", 0))
    if user == 0 and whole.get("runAsNonRoot"):
        raise ConfigError("container has runAsNonRoot and its image will run as root")
    if whole.get("privileged"):
        raise ConfigError("privileged containers are not supported by this agent")
    return user, int(whole.get("runAsGroup", user))


def keeps_capabilities(container: Json, user: int) -> bool:
    """Tell whether the container's program starts with capabilities over its own namespace."""
    dropped = container.get("securityContext", {}).get("capabilities", {}).get("drop", [])
    return user == 0 and "ALL" not in dropped
