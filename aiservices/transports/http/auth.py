"""Who may call: anyone where no keys are set, else holders of a key."""

from __future__ import annotations

import hmac

from aiohttp import web
from aiohttp.typedefs import Handler

from aiservices.transports.http.errors import Unauthorized
from aiservices.transports.http.lookup import REGISTRY
from aiservices.transports.http.process import ENDPOINTS

PUBLIC = frozenset(endpoint.path for endpoint in ENDPOINTS if endpoint.public)
"""Resources that need no key."""


@web.middleware
async def check_access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a request without a right key, on every path but the public ones."""
    resource = request.match_info.route.resource
    keys = request.app[REGISTRY].config.server.api_keys
    if keys and (resource is None or resource.canonical not in PUBLIC):
        _check_key(request, keys)
    return await handler(request)


def _check_key(request: web.Request, keys: tuple[str, ...]) -> None:
    """Take ``Authorization: Bearer KEY`` and the bare key, as RunPod does."""
    header = request.headers.get("Authorization", "")
    scheme, _, rest = header.partition(" ")
    given = (rest if scheme.lower() == "bearer" else header).strip().encode("utf-8", "surrogateescape")
    # All keys are compared, also behind the right one, so that the time tells nothing.
    matches = [hmac.compare_digest(given, key.encode()) for key in keys]
    if not any(matches):
        raise Unauthorized("unauthorized")
