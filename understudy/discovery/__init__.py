"""Where peers are: a static list or a watch of Kubernetes EndpointSlices, behind one protocol.

Clients balance over what they find here themselves; a ClusterIP would pin an HTTP/2 connection.
"""

from understudy.discovery.endpoints import Discovery, Endpoint, StaticDiscovery
from understudy.discovery.health import watch_healthy
from understudy.discovery.open import open_discovery

__all__ = ["Discovery", "Endpoint", "StaticDiscovery", "open_discovery", "watch_healthy"]
