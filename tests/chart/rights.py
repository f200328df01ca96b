"""What the controller asks of the API server, as (API group, resource, verb, name or empty)."""

from typing import Final

PREFIX: Final = "demo-understudy"
RIGHTS: Final = {
    ("apps", "deployments/scale", "get", f"{PREFIX}-llm-experts"),
    ("apps", "deployments/scale", "patch", f"{PREFIX}-llm-experts"),
    ("apps", "statefulsets/scale", "get", f"{PREFIX}-llm-attention"),
    ("apps", "statefulsets/scale", "patch", f"{PREFIX}-llm-attention"),
    ("", "pods", "list", ""),
    ("", "pods", "patch", ""),
    ("", "events", "create", ""),
    ("discovery.k8s.io", "endpointslices", "list", ""),
    ("discovery.k8s.io", "endpointslices", "watch", ""),
    ("coordination.k8s.io", "leases", "create", ""),
    ("coordination.k8s.io", "leases", "get", f"{PREFIX}-controller"),
    ("coordination.k8s.io", "leases", "update", f"{PREFIX}-controller"),
}
NOT_GRANTED: Final = (
    ("apps", "deployments/scale", "patch", f"{PREFIX}-router"),
    ("apps", "deployments", "patch", f"{PREFIX}-llm-experts"),
    ("apps", "statefulsets", "update", f"{PREFIX}-llm-attention"),
    ("", "pods", "delete", ""),
    ("", "pods", "create", ""),
    ("", "secrets", "get", f"{PREFIX}-keys"),
    ("", "secrets", "list", ""),
    ("coordination.k8s.io", "leases", "update", "another"),
    ("rbac.authorization.k8s.io", "roles", "update", ""),
)
