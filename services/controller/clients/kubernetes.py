"""The API server over HTTP, as plain JSON: scales, pods, Events and Leases of one namespace.

The `kubernetes` package brings configuration, credentials and connection; it takes a second to
import, so that happens on the first call and off the event loop.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import quote

from services.controller.cluster import (
    Conflict,
    LeaseRecord,
    Note,
    Pod,
    Scale,
    Workload,
)
from understudy.discovery.kubernetes_api import find_configuration
from understudy.errors import NotFound, Unavailable

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient, Configuration

DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
MERGE_PATCH: Final = "application/merge-patch+json"
REQUEST_TIMEOUT_S: Final = 10.0
MAX_MESSAGE_CHARS: Final = 1000
"""The API server refuses longer Event messages."""
PAGE: Final = 500
_CONFLICTS: Final = frozenset({409, 412})
_NOT_FOUND: Final = 404
_OK: Final = frozenset({200, 201})
_OTHERWISE: Final = "leave UNDERSTUDY_SCALING_RULES empty"

Json = Mapping[str, object]


class KubernetesCluster:
    """A `Cluster` and its `Leases`.

    Without a configuration it takes the pod's service account, and outside a cluster the
    kubeconfig file.
    """

    def __init__(
        self, namespace: str, identity: str, configuration: "Configuration | None" = None
    ) -> None:
        self._namespace = namespace
        self._identity = identity
        self._configuration = configuration
        self._client: ApiClient | None = None

    async def scale(self, workload: Workload) -> Scale:
        """Return the scale of a workload."""
        found = await self._call("GET", self._scale_path(workload))
        status, spec, metadata = _object(found, "status"), _object(found, "spec"), _meta(found)
        return Scale(
            int(str(spec.get("replicas", 0))),
            str(status.get("selector", "")),
            str(metadata.get("resourceVersion", "")),
        )

    async def set_replicas(self, workload: Workload, replicas: int, version: str) -> None:
        """Change the scale that had this version."""
        body = {"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}}
        await self._call("PATCH", self._scale_path(workload), body=body)

    async def pods(self, selector: str) -> Sequence[Pod]:
        """Return the pods that have not ended."""
        pods: list[Pod] = []
        query = {"labelSelector": selector, "limit": str(PAGE)}
        while True:
            found = await self._call("GET", self._core("pods"), query=query)
            pods += [_pod(one) for one in _objects(found, "items") if not _has_ended(one)]
            rest = str(_meta(found).get("continue") or "")
            if not rest:
                return pods
            query = {**query, "continue": rest}

    async def mark(self, pod: str, deletion_cost: int | None) -> None:
        """Set or take away a pod's deletion cost; a pod that is gone needs none."""
        cost = None if deletion_cost is None else str(deletion_cost)
        body = {"metadata": {"annotations": {DELETION_COST: cost}}}
        try:
            await self._call("PATCH", self._core("pods", pod), body=body)
        except NotFound:
            return

    async def write(self, note: Note) -> None:
        """Write an Event."""
        now = _now()
        about = {
            "apiVersion": "apps/v1",
            "kind": note.workload.kind.object_kind,
            "namespace": self._namespace,
            "name": note.workload.name,
        }
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{note.workload.name}-scaling-"},
            "involvedObject": about,
            "reason": note.reason,
            "message": note.message[:MAX_MESSAGE_CHARS],
            "type": "Warning" if note.is_warning else "Normal",
            "eventTime": now,
            "action": note.reason,
            "reportingComponent": "understudy.dev/controller",
            "reportingInstance": self._identity[:128],
        }
        await self._call("POST", self._core("events"), body=body)

    async def read(self, name: str) -> LeaseRecord | None:
        """Return a lease, None when there is none."""
        try:
            found = await self._call("GET", self._lease_path(name))
        except NotFound:
            return None
        spec = _object(found, "spec")
        return LeaseRecord(
            str(spec.get("holderIdentity") or ""),
            str(spec.get("renewTime") or ""),
            int(str(spec.get("leaseTransitions") or 0)),
            str(_meta(found).get("resourceVersion", "")),
        )

    async def create(self, name: str, holder: str, duration_s: int) -> None:
        """Create a lease."""
        body = _lease(name, LeaseRecord(holder, "", 0, ""), duration_s)
        await self._call("POST", self._lease_path(), body=body)

    async def replace(self, name: str, record: LeaseRecord, duration_s: int) -> None:
        """Write over the version of the record."""
        await self._call("PUT", self._lease_path(name), body=_lease(name, record, duration_s))

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
    ) -> Json:
        """Ask the API server; its failures turned into ours."""
        from aiohttp import ClientError
        from kubernetes.aio.client import ApiException

        client = await self._api()
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = MERGE_PATCH if method == "PATCH" else "application/json"
        try:
            request = await client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await client.call_api(
                *request, _request_timeout=REQUEST_TIMEOUT_S, _preload_content=False
            )
            status, text = response.status, await response.read()
        except (ApiException, ClientError, OSError, TimeoutError) as error:
            raise Unavailable(f"The API server cannot be asked: {error}") from error
        return _answer(method, path, status, text)

    async def _api(self) -> "ApiClient":
        if self._client is None:
            from kubernetes.aio.client import ApiClient

            self._client = ApiClient(self._configuration or await find_configuration(_OTHERWISE))
        return self._client

    def _core(self, *parts: str) -> str:
        return self._path("/api/v1", *parts)

    def _scale_path(self, workload: Workload) -> str:
        return self._path("/apis/apps/v1", workload.kind.value, workload.name, "scale")

    def _lease_path(self, *name: str) -> str:
        return self._path("/apis/coordination.k8s.io/v1", "leases", *name)

    def _path(self, api: str, *parts: str) -> str:
        return "/".join([api, "namespaces", self._namespace, *(quote(part) for part in parts)])


def _answer(method: str, path: str, status: int, text: bytes) -> Json:
    if status in _OK:
        try:
            found = json.loads(text)
        except ValueError as error:
            raise Unavailable(f"The API server answered no JSON to {path}: {error}") from error
        return cast("Json", found) if isinstance(found, dict) else {}
    said = f"The API server answered {status} to {method} {path}: {text[:200]!r}"
    if status in _CONFLICTS:
        raise Conflict(said)
    raise NotFound(said) if status == _NOT_FOUND else Unavailable(said)


def _object(found: Json, key: str) -> Json:
    value = found.get(key)
    return cast("Json", value) if isinstance(value, dict) else {}


def _objects(found: Json, key: str) -> list[Json]:
    value = found.get(key)
    listed = value if isinstance(value, list) else []
    return [cast("Json", one) for one in listed if isinstance(one, dict)]


def _meta(found: Json) -> Json:
    return _object(found, "metadata")


def _has_ended(pod: Json) -> bool:
    return _object(pod, "status").get("phase") in ("Succeeded", "Failed")


def _pod(found: Json) -> Pod:
    metadata, status = _meta(found), _object(found, "status")
    conditions = {one.get("type"): one for one in _objects(status, "conditions")}
    scheduled = conditions.get("PodScheduled", {})
    ports = {
        port.get("name"): int(str(port.get("containerPort", 0)))
        for container in [
            *_objects(_object(found, "spec"), "initContainers"),
            *_objects(_object(found, "spec"), "containers"),
        ]
        for port in _objects(container, "ports")
    }
    return Pod(
        name=str(metadata.get("name", "")),
        uid=str(metadata.get("uid", "")),
        ip=str(status.get("podIP") or ""),
        is_ready=conditions.get("Ready", {}).get("status") == "True",
        is_terminating=metadata.get("deletionTimestamp") is not None,
        is_unschedulable=scheduled.get("status") == "False"
        and scheduled.get("reason") == "Unschedulable",
        deletion_cost=_cost(_object(metadata, "annotations").get(DELETION_COST)),
        metrics_port=ports.get("metrics", 0),
        grpc_port=ports.get("grpc", 0),
    )


def _cost(value: object) -> int | None:
    try:
        return None if value is None else int(str(value))
    except ValueError:
        return None


def _lease(name: str, record: LeaseRecord, duration_s: int) -> Json:
    metadata = {"name": name, **({"resourceVersion": record.version} if record.version else {})}
    now = _now()
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": {
            "holderIdentity": record.holder,
            "leaseDurationSeconds": duration_s,
            "leaseTransitions": record.transitions,
            "acquireTime": now,
            "renewTime": now,
        },
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
