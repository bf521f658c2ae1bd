"""Which web pages may call: the server's own, and those of ``allow_origins``; others' may drive no open server.

A page that the operator happens to visit can post to any address that the operator's browser reaches, and a name that
resolves to this machine (DNS rebinding) makes it read the answers too. Where callers need keys, no page has one.

Sources: https://www.w3.org/TR/fetch-metadata/, https://fetch.spec.whatwg.org/#http-cors-protocol.
"""

from __future__ import annotations

import ipaddress

from aiohttp import web
from aiohttp.typedefs import Handler

from aiservices.settings import ServerConfig
from aiservices.transports.http.errors import CrossSite, Misdirected, UnsupportedBody
from aiservices.transports.http.lookup import REGISTRY

_SIMPLE_TYPES = frozenset({"", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded"})
"""What a page may post to another site without asking first (https://fetch.spec.whatwg.org/#cors-safelisted-request-header)."""

_READS = frozenset({"GET", "HEAD"})
_PREFLIGHT_LIFE_S = 600


@web.middleware
async def check_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse other names than the server's, and what other sites' pages send; answer preflights of allowed ones."""
    server = request.app[REGISTRY].config.server
    _check_host(request, server)
    if _allowed_origin(request) is not None:
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return web.Response(status=204, headers=_preflight(request))
    elif not server.needs_keys and request.method not in _READS:
        _check_site(request)
    return await handler(request)


async def add_cors(request: web.Request, response: web.StreamResponse) -> None:
    """Let allowed origins read the answer; a signal, so that streams and errors get it too."""
    if request.app[REGISTRY].config.server.allow_origins:
        response.headers["Vary"] = "Origin"
    origin = _allowed_origin(request)
    if origin is not None:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = "Retry-After, X-Request-ID"


def _allowed_origin(request: web.Request) -> str | None:
    origin = request.headers.get("Origin")
    return origin if origin in request.app[REGISTRY].config.server.allow_origins else None


def _preflight(request: web.Request) -> dict[str, str]:
    headers = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, X-Request-ID",
        "Access-Control-Max-Age": str(_PREFLIGHT_LIFE_S),
    }
    if "Access-Control-Request-Private-Network" in request.headers:
        headers["Access-Control-Allow-Private-Network"] = "true"
    return headers


def _check_host(request: web.Request, server: ServerConfig) -> None:
    """Without keys on loopback only known names are served; ``hosts`` holds everywhere once it is set.

    An address cannot be rebound, so each is fine. Who sends no ``Host`` is no browser.
    """
    if not server.hosts and (server.needs_keys or not _is_loopback(server.host)):
        return
    for host in request.headers.getall("Host", ()):
        name = _name_of(host)
        if not (_is_address(name) or _is_loopback(name) or name in _names(server)):
            raise Misdirected("this server does not go by the name of the Host header; [server] hosts lists more names")


def _names(server: ServerConfig) -> set[str]:
    return {name.lower() for name in (server.host, *server.hosts)}


def _check_site(request: web.Request) -> None:
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is None and origin is not None:
        site = "same-origin" if origin.lower().partition("://")[2] == _host_of(request) else "cross-site"
    if site not in (None, "same-origin", "none"):
        raise CrossSite("pages of other sites may not call this server")
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if origin is not None and request.can_read_body and kind in _SIMPLE_TYPES:
        raise UnsupportedBody("expected Content-Type: application/json")


def _host_of(request: web.Request) -> str:
    return request.headers.get("Host", "").lower()


def _name_of(host: str) -> str:
    """The host without its port, in lower case and without the brackets of an IPv6 address."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _is_loopback(name: str) -> bool:
    # Browsers and resolvers keep these names for the machine itself: https://www.rfc-editor.org/rfc/rfc6761#section-6.3
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
