"""What stands beside the job API: the page, the OpenAPI document, probes and metrics."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import attrs
from aiohttp import web

from aiservices.model import ServiceState
from aiservices.registry import Registry
from aiservices.service import Service
from aiservices.storage import PACKAGE_SCHEME
from aiservices.transports.http.errors import json_response
from aiservices.transports.http.lookup import CALLER, DOCUMENT, REGISTRY

_FILES = {path.name: path.read_bytes() for path in (Path(__file__).parent / "static").iterdir()}
"""The page's few small files, in memory: a request touches no file system."""

_CONTENT_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


_UNFIT = frozenset({ServiceState.FAILED, ServiceState.STOPPED})


async def page(request: web.Request) -> web.StreamResponse:
    """The playground: try every service in the browser."""
    return _file("index.html")


async def static(request: web.Request) -> web.StreamResponse:
    """A file of the page."""
    return _file(request.match_info["file"])


async def openapi(request: web.Request) -> web.StreamResponse:
    """This description of the API."""
    return web.Response(body=request.app[DOCUMENT], content_type="application/json")


async def livez(request: web.Request) -> web.StreamResponse:
    """Tell whether the process can go on: 503 once a model's device is beyond repair or its thread hangs."""
    broken = [service.name for service in request.app[REGISTRY].services.values() if service.broken]
    return json_response({"live": False, "broken": broken}, 503) if broken else json_response({"live": True})


async def readyz(request: web.Request) -> web.StreamResponse:
    """Tell whether every service takes jobs at once, and the state of each."""
    registry = request.app[REGISTRY]
    ready = is_ready(registry)
    # A failure's reason may name a path or a bucket; where callers need keys, only an operator's is told.
    tell_all = request[CALLER].operator
    services = {name: _service_state(service, tell_all) for name, service in registry.services.items()}
    shown = {
        "ready": ready,
        "starting": registry.starting,
        "draining": registry.draining,
        "profile": registry.config.profile,
        "services": services,
    }
    return json_response(shown, 200 if ready else 503)


async def ping(request: web.Request) -> web.StreamResponse:
    """Answer RunPod's load balancer: 204 while loading, 200 ready, 503 failed.

    Source: https://docs.runpod.io/serverless/load-balancing/overview.
    """
    registry = request.app[REGISTRY]
    if is_ready(registry):
        return json_response({"status": "ready"})
    unfit = registry.broken or registry.draining or any(each.state in _UNFIT for each in registry.services.values())
    return web.Response(status=503 if unfit else 204)


async def metrics(request: web.Request) -> web.StreamResponse:
    """Everything that is counted, as Prometheus text."""
    body, content_type = request.app[REGISTRY].metrics.render()
    return web.Response(body=body, headers={"Content-Type": content_type})


@attrs.frozen
class Endpoint:
    """One path of the process itself, for the routes, for the OpenAPI document and for who may call it.

    Attributes:
        public: whether it needs no key: the page, its description of the API, and probes that tell nothing secret.
        operators: whether it needs an operator's key.
        documented: whether the OpenAPI document has it.
    """

    path: str
    handle: Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]
    content_type: str = "application/json"
    statuses: tuple[int, ...] = (200,)
    public: bool = True
    operators: bool = False
    documented: bool = True


ENDPOINTS = (
    Endpoint("/", page, "text/html"),
    Endpoint("/static/{file}", static, documented=False),
    Endpoint("/openapi.json", openapi),
    Endpoint("/livez", livez, statuses=(200, 503)),
    Endpoint("/readyz", readyz, statuses=(200, 503)),
    Endpoint("/ping", ping, statuses=(200, 204, 503)),
    Endpoint("/metrics", metrics, "text/plain", public=False, operators=True),
)


def routes() -> Iterator[web.RouteDef]:
    """Every endpoint."""
    for endpoint in ENDPOINTS:
        yield web.get(endpoint.path, endpoint.handle)


def _file(name: str) -> web.Response:
    if name not in _FILES:
        raise web.HTTPNotFound
    content_type = _CONTENT_TYPES[Path(name).suffix]
    return web.Response(
        body=_FILES[name], content_type=content_type, charset="utf-8", headers={"Cache-Control": "no-cache"}
    )


def is_ready(registry: Registry) -> bool:
    """Whether every service takes jobs at once, or loads on purpose with its first job."""
    if registry.starting or registry.draining or registry.broken:
        return False
    return all(each.takes_jobs for each in registry.services.values())


def _service_state(service: Service, tell_all: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"state": service.state, "demo": service.config.model.startswith(PACKAGE_SCHEME)}
    if service.reason is not None and (tell_all or service.state in (ServiceState.LOADING, ServiceState.UNLOADING)):
        shown["reason"] = service.reason
    return shown
