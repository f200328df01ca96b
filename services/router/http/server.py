"""Runs the edge under uvicorn inside the router's event loop; signals stay with the chassis."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from services.router.http.tls import server_context
from understudy.errors import Unavailable
from understudy.serving import Identity, parse_address


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """One listening edge: `run` beside the gRPC server, `drain` before it ends."""

    def __init__(
        self,
        app: Starlette,
        listen: str,
        *,
        max_concurrency: int,
        identity: Identity | None = None,
    ) -> None:
        """Speak plaintext unless an identity for callers is given."""
        self._host, self._port = parse_address(listen)
        config = uvicorn.Config(
            app,
            host=self._host,
            port=self._port,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            limit_concurrency=4 * max_concurrency,
            timeout_keep_alive=75,
        )
        if identity is not None:
            config.load()
            config.ssl = server_context(identity)
        self._server = _Server(config)
        self._ended = asyncio.Event()

    @property
    def is_listening(self) -> bool:
        """Whether the edge takes connections."""
        return self._server.started

    @property
    def port(self) -> int:
        """The port it listens on, once it does."""
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    async def run(self) -> None:
        """Serve until drained or cancelled; raises Unavailable when the address is taken."""
        try:
            await self._server.serve()
        except SystemExit as error:  # how uvicorn says that it could not bind
            raise Unavailable(
                f"The HTTP edge cannot listen on {self._host}:{self._port}; is the port in use? "
                "Free it or set UNDERSTUDY_ROUTER_HTTP_LISTEN."
            ) from error
        finally:
            if self._server.started:
                for listener in self._server.servers:
                    listener.close()
            self._ended.set()

    async def drain(self, grace_s: float) -> None:
        """Take no new connection, let running answers finish within the grace, and end."""
        self._server.config.timeout_graceful_shutdown = max(1, int(grace_s))
        self._server.should_exit = True
        await self._ended.wait()
