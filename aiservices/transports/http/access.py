"""What every answer gets: a request id, security headers and a line in the log."""

from __future__ import annotations

import itertools
import os
import re
import time

from aiohttp import web
from aiohttp.typedefs import Handler

from aiservices.logs import get_logger
from aiservices.transports.http.lookup import CALLER, REGISTRY, operation_name

REQUEST_ID_HEADER = "X-Request-ID"
CLIENT_GONE = 499
"""Status in the log for a caller who went away before the answer; nginx's number for it."""

_REQUEST_ID = web.RequestKey("request_id", str)
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PROCESS_ID = os.urandom(10).hex()
_REQUESTS = itertools.count()
PROBES = frozenset({"/livez", "/readyz", "/ping", "/metrics"})
"""Paths that are asked again and again: logged at debug level only."""
_LOGGED_PATH_LENGTH = 200
SECURITY_HEADERS = {
    "Server": "aiservices",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""What every answer has, also those to what is no HTTP."""

log = get_logger(__name__)


def request_id(request: web.Request) -> str:
    """The request's id: the caller's, where it gave a harmless one, else ours."""
    known = request.get(_REQUEST_ID)
    if known is None:
        given = request.headers.get(REQUEST_ID_HEADER, "")
        known = request[_REQUEST_ID] = given if _GIVEN_ID.fullmatch(given) else _new_id()
    return known


def _new_id() -> str:
    """An id for logs, which need not be hard to guess: this process's own and a count."""
    return f"{_PROCESS_ID}{next(_REQUESTS):012x}"


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the request id and the security headers; a signal, so that streams get them too."""
    response.headers[REQUEST_ID_HEADER] = request_id(request)
    response.headers.update(SECURITY_HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")


@web.middleware
async def log_access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Log and count the request once it is answered. The query stays out: callers put secrets there."""
    began = time.monotonic()
    status = CLIENT_GONE
    try:
        response = await handler(request)
        status = response.status
    finally:
        seconds = time.monotonic() - began
        request.app[REGISTRY].metrics.request(operation_name(request), status, seconds)
        caller = request.get(CALLER)
        write = log.debug if request.path in PROBES else log.info
        write(
            "http.request",
            method=request.method,
            path=request.rel_url.raw_path[:_LOGGED_PATH_LENGTH],
            status=status,
            seconds=round(seconds, 4),
            request=request_id(request),
            **({"key": caller.key} if caller is not None and caller.key else {}),
        )
    return response
