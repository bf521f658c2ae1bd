"""Find what a request means: its service, its job id, its query."""

from __future__ import annotations

import functools
import re

from aiohttp import web

from aiservices.callers import Caller
from aiservices.errors import InvalidInput, Starting
from aiservices.jobs import Job
from aiservices.registry import Registry
from aiservices.service import Service

REGISTRY = web.AppKey("registry", Registry)
CALLER = web.RequestKey("caller", Caller)
"""Who sent the request; set before any handler runs."""

DOCUMENT = web.AppKey("document", bytes)
"""The OpenAPI document, encoded once."""

SHORTEST_WAIT_MS = 1_000
LONGEST_WAIT_MS = 300_000
"""Bounds of ``?wait=``; RunPod's own (https://docs.runpod.io/serverless/endpoints/operation-reference)."""


def check_started(request: web.Request) -> None:
    """Raise Starting as long as not every job of an earlier process is known again."""
    if request.app[REGISTRY].starting:
        raise Starting


def find_service(request: web.Request) -> Service:
    """Return the service that the path names; the only one where the path names none.

    Raises:
        UnknownService: there is none of that name.
        Starting: its jobs are still being restored.
    """
    check_started(request)
    return request.app[REGISTRY].get(service_name(request))


def service_name(request: web.Request) -> str:
    """The service's name as the path has it, known or not; where it has none, that of the only service, or nothing."""
    services = request.app[REGISTRY].services
    return request.match_info.get("service", next(iter(services)) if len(services) == 1 else "")


def operation_name(request: web.Request) -> str:
    """What was asked for, by the route it took and not by its path: ``run``, ``livez``; ``unknown`` for no route."""
    resource = request.match_info.route.resource
    return "unknown" if resource is None else _last_word(resource.canonical)


@functools.cache
def _last_word(route: str) -> str:
    return next((word for word in reversed(route.split("/")) if word and word[0] != "{"), "page")


def find_job(request: web.Request) -> tuple[Service, Job]:
    """Return the job that the path names, and its service.

    Raises:
        UnknownService, JobNotFound: there is none that the caller may see.
    """
    service = find_service(request)
    return service, service.get(job_id(request), request[CALLER])


def job_id(request: web.Request) -> str:
    """The job's id as the path has it."""
    return request.match_info["job_id"]


def wait_s(request: web.Request, default_s: float) -> float:
    """Read ``?wait=`` in milliseconds; return seconds.

    Raises:
        InvalidInput: it is no whole number within its bounds.
    """
    text = request.query.get("wait")
    if text is None:
        return default_s
    if not re.fullmatch(r"[0-9]{1,9}", text) or not SHORTEST_WAIT_MS <= int(text) <= LONGEST_WAIT_MS:
        expected = f"expected whole milliseconds from {SHORTEST_WAIT_MS} to {LONGEST_WAIT_MS}"
        raise InvalidInput("wait", expected)
    return int(text) / 1000
