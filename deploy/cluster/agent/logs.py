"""The part of a kubelet's own API that `kubectl logs` and `helm test --logs` need."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from deploy.cluster.agent.container import Container
from deploy.cluster.layout import KUBELET_PORT, Layout

CHUNK_BYTES: Final = 1 << 16
FOLLOW_S: Final = 0.2

Find = Callable[[str, str, str], Container | None]


def newest(folder: Path, *, is_previous: bool) -> Path | None:
    """Return the log of a container's last start, or of the one before."""
    logs = sorted(folder.glob("[0-9]*.log"), key=lambda path: int(path.stem))
    index = 2 if is_previous else 1
    return logs[-index] if len(logs) >= index else None


def tail(content: bytes, num_lines: int | None) -> bytes:
    """Return the last lines of a log."""
    if num_lines is None:
        return content
    lines = content.splitlines(keepends=True)
    return b"".join(lines[len(lines) - min(num_lines, len(lines)) :])


class LogServer:
    """Serves logs to the API server, which alone has a certificate for it."""

    def __init__(self, layout: Layout, find: Find) -> None:
        self._layout, self._find = layout, find

    async def start(self) -> None:
        """Listen on the port that the nodes name."""
        pki = self._layout.certificates
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "ca.crt"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(pki / "kubelet.crt", pki / "kubelet.key")
        application = web.Application()
        application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", KUBELET_PORT, ssl_context=context).start()  # noqa: S104

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        container = self._find(
            *(request.match_info[key] for key in ("namespace", "pod", "container"))
        )
        is_previous = request.query.get("previous") == "true"
        log = newest(container.logs, is_previous=is_previous) if container else None
        if container is None or log is None:
            return web.Response(status=404, text="there is no such log")
        lines = request.query.get("tailLines")
        answer = web.StreamResponse(headers={"content-type": "text/plain"})
        await answer.prepare(request)
        with log.open("rb") as file:
            await answer.write(tail(file.read(), int(lines) if lines else None))
            while request.query.get("follow") == "true":
                is_over = not container.state.is_running
                while data := file.read(CHUNK_BYTES):
                    await answer.write(data)
                if is_over:
                    break
                await asyncio.sleep(FOLLOW_S)
        return answer
