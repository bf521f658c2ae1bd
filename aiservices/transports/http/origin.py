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

_SIMPLE_TYPES = frozenset({"", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded"})
"""What a page may post to another site without asking first (https://fetch.spec.whatwg.org/#cors-safelisted-request-header)."""

_READS = frozenset({"GET", "HEAD"})
_PREFLIGHT_LIFE_S = 600

_NOT_OUR_NAME = "this server does not go by the name of the Host header; [server] hosts lists more names"

_SEEN_HOSTS = 64
"""Names found good that need no second look: a server has a few, and each of a thousand addresses is good too."""


class OriginGate:
    """Lets those pages call that may.

    Args:
        server: its names, and the origins that are allowed.
    """

    def __init__(self, server: ServerConfig) -> None:
        self._allowed = frozenset(server.allow_origins)
        self._open = not server.needs_keys
        # An address cannot be rebound; so names matter where a browser of this machine can call without a key.
        self._checks_hosts = bool(server.hosts) or (self._open and _is_loopback(server.host))
        self._names = {name.lower() for name in (server.host, *server.hosts)}
        self._seen_hosts: set[str] = set()

    def join(self, app: web.Application) -> None:
        """Check every request of an application, and mark the answers that pages may read."""
        app.middlewares.append(self._check)
        if self._allowed:
            app.on_response_prepare.append(self._add_cors)

    @web.middleware
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse other names than the server's, and what other sites' pages send; answer preflights of allowed ones."""
        if self._checks_hosts:
            self._check_hosts(request)
        if self._allowed_origin(request) is not None:
            if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
                return web.Response(status=204, headers=_preflight(request))
        elif self._open and request.method not in _READS:
            _check_site(request)
        return await handler(request)

    async def _add_cors(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let allowed origins read the answer; a signal, so that streams and errors get it too."""
        response.headers["Vary"] = "Origin"
        origin = self._allowed_origin(request)
        if origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "Retry-After, X-Request-ID"

    def _allowed_origin(self, request: web.Request) -> str | None:
        origin = request.headers.get("Origin") if self._allowed else None
        return origin if origin in self._allowed else None

    def _check_hosts(self, request: web.Request) -> None:
        """Refuse names that are not ours. Who sends no ``Host`` is no browser."""
        for host in request.headers.getall("Host", ()):
            if host in self._seen_hosts:
                continue
            name = _name_of(host)
            if not (_is_address(name) or _is_loopback(name) or name in self._names):
                raise Misdirected(
                    "this server does not go by the name of the Host header; [server] hosts lists more names"
                )
            if len(self._seen_hosts) < _SEEN_HOSTS:
                self._seen_hosts.add(host)


def _preflight(request: web.Request) -> dict[str, str]:
    headers = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, X-Request-ID",
        "Access-Control-Max-Age": str(_PREFLIGHT_LIFE_S),
    }
    if "Access-Control-Request-Private-Network" in request.headers:
        headers["Access-Control-Allow-Private-Network"] = "true"
    return headers


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
