"""Who may call: anyone where no keys are set, else holders of a key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler

from aiservices.callers import ANYONE, NOBODY, Caller
from aiservices.keys import KeyRing
from aiservices.transports.http.errors import Forbidden, Unauthorized
from aiservices.transports.http.lookup import CALLER, REGISTRY
from aiservices.transports.http.process import ENDPOINTS

KEYS = web.AppKey("keys", KeyRing)

PUBLIC = frozenset(endpoint.path for endpoint in ENDPOINTS if endpoint.public)
"""Resources that need no key."""

OPERATORS = frozenset(endpoint.path for endpoint in ENDPOINTS if endpoint.operators)
"""Resources that need an operator's key."""


@web.middleware
async def check_access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Find out who calls; refuse a request without a right key, on every path but the public ones."""
    resource = request.match_info.route.resource
    path = "" if resource is None else resource.canonical
    keys = request.app[KEYS]
    caller = _caller(request, keys) if keys.needed else ANYONE
    request[CALLER] = caller
    if path not in PUBLIC and caller is NOBODY:
        raise Unauthorized("unauthorized")
    if path in OPERATORS and not caller.operator:
        raise Forbidden("this needs the key of an operator")
    return await handler(request)


async def watch_keys(app: web.Application) -> AsyncIterator[None]:
    """Read the keys, and follow their file as long as the application lives."""
    keys, quotas = app[KEYS], app[REGISTRY].quotas

    def set_limits() -> None:
        quotas.set_limits(keys.limits)

    await asyncio.to_thread(keys.read)
    set_limits()
    watch = asyncio.get_running_loop().create_task(keys.watch(set_limits))
    yield
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


def _caller(request: web.Request, keys: KeyRing) -> Caller:
    """Take ``Authorization: Bearer KEY`` and the bare key, as RunPod does."""
    header = request.headers.get("Authorization", "")
    scheme, _, rest = header.partition(" ")
    given = (rest if scheme.lower() == "bearer" else header).strip().encode("utf-8", "surrogateescape")
    return keys.find(given) or NOBODY
