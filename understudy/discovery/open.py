"""Turns a setting into a discovery."""

import re
from typing import Final

from understudy.discovery.endpoint_slices import SliceSelector
from understudy.discovery.endpoints import Discovery, StaticDiscovery
from understudy.discovery.kubernetes_api import watch_slices
from understudy.errors import InvalidArgument

_KUBERNETES: Final = re.compile(
    r"k8s:(?P<namespace>[a-z0-9-]{1,63})/(?P<service>[a-z0-9-]{1,63}):(?P<port>[a-z0-9-]{1,15})"
)
_ADDRESS: Final = re.compile(r"(?:[^\s:,/]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")


def open_discovery(spec: str) -> Discovery:
    """The discovery that a setting names.

    `host:port,host:port` are peers that never change; `k8s:namespace/service:port-name` are the
    ready endpoints of a Kubernetes Service. Raises `InvalidArgument` naming what is neither.
    """
    if spec.startswith("k8s:"):
        found = _KUBERNETES.fullmatch(spec)
        if found is None:
            raise InvalidArgument(
                f"The peers {spec!r} are not of the form k8s:namespace/service:port-name."
            )
        return watch_slices(SliceSelector(found["namespace"], found["service"], found["port"]))
    addresses = [part.strip() for part in spec.split(",") if part.strip()]
    for address in addresses:
        if not _ADDRESS.fullmatch(address):
            raise InvalidArgument(
                f"The peer {address!r} is not of the form host:port; separate peers by commas."
            )
    return StaticDiscovery(addresses)
