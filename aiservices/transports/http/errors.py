"""Turn every error into JSON: one table from the core's codes to HTTP, and one middleware that applies it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from aiservices.errors import ServiceError, UnknownService
from aiservices.logs import get_logger
from aiservices.transports.http.access import CLIENT_GONE, request_id
from aiservices.transports.http.lookup import REGISTRY, service_name

log = get_logger(__name__)


class Unauthorized(ServiceError):
    """The request has no key, or a wrong one."""

    code = "unauthorized"


class CrossSite(ServiceError):
    """A page of another site made a visitor's browser send this."""

    code = "cross_site"


class Forbidden(ServiceError):
    """The key is right, and does not allow this."""

    code = "forbidden"


class Misdirected(ServiceError):
    """The ``Host`` header has a name that is not this server's."""

    code = "misdirected"


class UnsupportedBody(ServiceError):
    """The body is of a type, or in an encoding, that is not read here."""

    code = "unsupported_body"


class CallerGone(ServiceError):
    """The caller went away before its body was here; nobody reads the answer."""

    code = "caller_gone"


class BodyTooLarge(ServiceError):
    """The body passes the operation's bound."""

    code = "body_too_large"


class BodyTooSlow(ServiceError):
    """The body did not come in time."""

    code = "body_too_slow"


class TooManyBodies(ServiceError):
    """The bodies under way have no room for another one; try again after ``retry_after_s``."""

    code = "too_many_bodies"

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class TooManyAnswers(ServiceError):
    """The large answers under way leave no room for another one; try again after ``retry_after_s``."""

    code = "too_many_answers"

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.job_id: str | None = None


STATUS: Mapping[str, int] = {
    "invalid_input": 400,
    "fetch_failed": 400,
    "unauthorized": 401,
    "cross_site": 403,
    "forbidden": 403,
    "unknown_service": 404,
    "job_not_found": 404,
    "body_too_slow": 408,
    "conflict": 409,
    "stream_ended": 410,
    "body_too_large": 413,
    "unsupported_body": 415,
    "misdirected": 421,
    "queue_full": 429,
    "limit_reached": 429,
    "caller_gone": CLIENT_GONE,
    "too_many_answers": 503,
    "too_many_bodies": 503,
    "starting": 503,
    "unavailable": 503,
    "model_broken": 503,
    "out_of_memory": 503,
    "failed": 500,
    "config": 500,
}
"""The code of a :class:`~aiservices.errors.ServiceError` -> HTTP status."""

_NO_JOB_MEANT = frozenset(
    {
        "unauthorized",
        "cross_site",
        "forbidden",
        "misdirected",
        "starting",
        "too_many_answers",
        "unknown_service",
        "conflict",
    }
)
"""Codes whose answer claims no job status. A conflict leaves the job what it was."""


def json_response(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with a small value as JSON."""
    return json_bytes(msgspec.json.encode(data), status, headers)


def json_bytes(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with JSON that is encoded already."""
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors in JSON; log what is unexpected whole and show none of it."""
    try:
        return await handler(request)
    except ServiceError as error:
        _count(request, error)
        return json_response(_body(request, error), STATUS[error.code], headers_of(error))
    except web.HTTPException as error:
        return _http_error(request, error)
    except Exception as error:
        log.error("http.failed", method=request.method, request=request_id(request), exc_info=error)
        return json_response({"error": "internal error", "requestId": request_id(request)}, 500)


def _body(request: web.Request, error: ServiceError) -> dict[str, Any]:
    shown: dict[str, Any] = {"error": str(error)}
    if isinstance(error, UnknownService):
        shown["services"] = list(error.services)
    if error.code not in _NO_JOB_MEANT:
        shown = {"status": "FAILED", **shown}
    if isinstance(error, TooManyAnswers) and error.job_id is not None:
        return {"id": error.job_id, **shown}
    if "job_id" in request.match_info and error.code not in ("unauthorized", "unknown_service"):
        shown = {"id": request.match_info["job_id"], **shown}
    return shown


def headers_of(error: ServiceError) -> dict[str, str]:
    """Return what an error's answer has among its headers: how to come in, or when to come again."""
    if error.code == "unauthorized":
        return {"WWW-Authenticate": "Bearer"}
    retry_after_s: float | None = getattr(error, "retry_after_s", None)
    return {} if retry_after_s is None else {"Retry-After": str(max(1, math.ceil(retry_after_s)))}


def _count(request: web.Request, error: ServiceError) -> None:
    registry, name = request.app[REGISTRY], service_name(request)
    registry.metrics.rejected(name if name in registry.services else "", error.code)


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    """Answer what aiohttp itself refuses: unknown paths, wrong methods."""
    allowed = error.headers.get("Allow")
    headers = {"Allow": allowed} if allowed else None
    if error.status == 404:
        services = list(request.app[REGISTRY].services)
        return json_response({"error": "no such path; /openapi.json lists those there are", "services": services}, 404)
    if allowed:
        return json_response({"error": f"{request.method} is not allowed here, only {allowed}"}, 405, headers)
    return json_response({"error": error.reason}, error.status)
