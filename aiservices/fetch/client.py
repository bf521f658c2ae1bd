"""The HTTP client for hosts that a caller named: what it connects, what it keeps, and how it hangs up."""

from __future__ import annotations

import contextlib
import io
import ssl
from collections.abc import AsyncIterator, Mapping

import aiohttp
from aiohttp.abc import AbstractResolver

from aiservices.fetch.addresses import AllowList
from aiservices.fetch.resolver import GuardedResolver
from aiservices.fetch.url import Target


def guarded_connector(
    lookup: AbstractResolver, allowed: AllowList, *, tls: ssl.SSLContext | None = None
) -> aiohttp.TCPConnector:
    """Return a connector that connects names only to addresses that were checked, each connection anew.

    It asks no resolver about a literal address: a URL has to pass :func:`aiservices.fetch.url.check_url` before.

    Args:
        lookup: looks names up, without any check. The connector does not close it.
        allowed: hosts that may be private.
        tls: whom to trust; None takes the system's roots.
    """
    return aiohttp.TCPConnector(
        resolver=GuardedResolver(lookup, allowed), use_dns_cache=False, force_close=True, limit=0, ssl=tls or True
    )


def untrusting_session(
    connector: aiohttp.TCPConnector, *, connect_timeout_s: float, user_agent: str
) -> aiohttp.ClientSession:
    """Return a client without cookies, proxies, ``.netrc`` and decompression. It closes the connector.

    The time to connect is bounded; the whole is the caller's to bound, since aiohttp's own total knows no redirects.
    """
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
        headers={"User-Agent": user_agent, "Accept-Encoding": "identity"},
    )


@contextlib.asynccontextmanager
async def request(
    session: aiohttp.ClientSession,
    method: str,
    target: Target,
    *,
    headers: Mapping[str, str] | None = None,
    data: bytes | None = None,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send one request, follow no redirect, and hang up after what the answer is used for."""
    # A stream, because aiohttp writes bytes at one go and warns about that above 1 MiB.
    body = None if data is None else io.BytesIO(data)
    response = await session.request(method, target.url, headers=headers, data=body, allow_redirects=False)
    try:
        yield response
    finally:
        # A polite TLS goodbye would wait half a minute for a peer that we have just found hostile.
        connection = response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        response.close()
