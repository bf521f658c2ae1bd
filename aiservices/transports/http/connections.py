"""Connections: how many there may be, how long one may say nothing, and what it gets that speaks no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from aiservices.logs import get_logger
from aiservices.metrics import Metrics
from aiservices.settings import ServerConfig
from aiservices.transports.http.access import PROBES, SECURITY_HEADERS
from aiservices.transports.http.errors import json_response
from aiservices.transports.http.lookup import REGISTRY

PROBE_CONNECTIONS = 64
"""Connections above the bound that are served probes alone, so that callers never stop ``/livez``."""

_FILES_BESIDE = 512
"""Open files of the process that are no connection: models, downloads, uploads, webhooks."""

log = get_logger(__name__)


class Connection(web.RequestHandler):
    """One connection: closed where a request's head does not come in time, or its answer is not read.

    Attributes:
        above_bound: whether it came when there were as many as may be; it is served probes only.
    """

    __slots__ = ("_head_timeout_s", "_head_timer", "_send_timeout_s", "_send_timer", "above_bound")

    def __init__(self, *args: Any, head_timeout_s: float, send_timeout_s: float, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.above_bound = False
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timeout_s = send_timeout_s
        self._send_timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether it waits for the head of a request, with nothing left to answer."""
        return not self._request_in_progress and not self._messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; the first head is waited for from now on."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; where they begin a head, its end has to follow in time."""
        super().data_received(data)
        if not self.idle:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        self._stop_head_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The reader is slower than we are; it has to take some in time."""
        super().pause_writing()
        self._send_timer = asyncio.get_running_loop().call_later(self._send_timeout_s, self.abort)

    def resume_writing(self) -> None:
        """The reader took what there was."""
        self._stop_send_timer()
        super().resume_writing()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what is no HTTP in one line of JSON that tells nothing of the library that found it."""
        log.debug("http.malformed", status=status, reason=type(exc).__name__)
        if request.writer is not None and request.writer.output_size > 0:
            raise ConnectionError("the answer has begun already")
        shown = {"error": "the request is not valid HTTP" if status < 500 else "internal error"}
        answer = web.Response(
            status=status, body=msgspec.json.encode(shown), content_type="application/json", headers=SECURITY_HEADERS
        )
        answer.force_close()
        return answer

    def abort(self) -> None:
        """End at once; what is not sent yet is dropped, or a peer that does not read would keep the file open."""
        transport = self.transport
        self.force_close()
        if transport is not None:
            transport.abort()

    def _await_head(self) -> None:
        self._head_timer = asyncio.get_running_loop().call_later(self._head_timeout_s, self._head_late)

    def _head_late(self) -> None:
        self._head_timer = None
        if self.idle:
            self.abort()

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Server(web.Server):
    """Makes connections; where there are too many, idle ones give way, the oldest first."""

    def __init__(self, *args: Any, server: ServerConfig, metrics: Metrics, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._max_connections = server.max_connections
        metrics.watch_connections(lambda: len(self._within) + len(self._above))
        self._bounds = {"head_timeout_s": server.head_timeout_s, "send_timeout_s": server.send_timeout_s}
        self._within: dict[Connection, None] = {}
        self._above: dict[Connection, None] = {}

    def __call__(self) -> Connection:
        """Make the protocol of a new connection."""
        loop = asyncio.get_running_loop()
        return Connection(self, loop=loop, **self._bounds, **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection and, above the bound, close one that waits."""
        assert isinstance(handler, Connection)
        super().connection_made(handler, transport)
        if len(self._within) >= self._max_connections:
            self._close(next((each for each in self._within if each.idle), None))
        handler.above_bound = len(self._within) >= self._max_connections
        (self._above if handler.above_bound else self._within)[handler] = None
        if len(self._above) > PROBE_CONNECTIONS:
            self._close(next(iter(self._above)))

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Count it no longer."""
        assert isinstance(handler, Connection)
        self._forget(handler)
        super().connection_lost(handler, exc)

    def _close(self, connection: Connection | None) -> None:
        if connection is not None:
            self._forget(connection)
            connection.abort()

    def _forget(self, connection: Connection) -> None:
        self._within.pop(connection, None)
        self._above.pop(connection, None)


class Runner(web.AppRunner):
    """Runs the application on bounded connections.

    Args:
        app: what to serve.
        server: bounds on connections and on their times.
        settings: of :class:`aiohttp.web.AppRunner`.
    """

    __slots__ = ("_config",)

    def __init__(self, app: web.Application, server: ServerConfig, **settings: Any) -> None:
        super().__init__(app, keepalive_timeout=server.keepalive_s, **settings)
        self._config = server

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            server=self._config,
            metrics=self.app[REGISTRY].metrics,
            **made._kwargs,
        )


@web.middleware
async def check_room(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Serve only probes to connections above the bound."""
    if not getattr(request.protocol, "above_bound", False) or request.path in PROBES:
        return await handler(request)
    shown = {"status": "FAILED", "error": "too many connections are open; try again"}
    answer = json_response(shown, 503, {"Retry-After": "1"})
    answer.force_close()  # a client that kept this connection would be refused for as long as it keeps it
    return answer


def raise_file_limit(max_connections: int) -> int:
    """Let the process open a file for each connection, as far as the system allows; return how many fit."""
    wanted = max_connections + PROBE_CONNECTIONS + _FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        fits = max(1, min(max_connections, soft - PROBE_CONNECTIONS - _FILES_BESIDE))
        if fits < max_connections:
            log.warning("server.fewer_connections", max_connections=fits, open_files=soft)
        return fits
    return max_connections
