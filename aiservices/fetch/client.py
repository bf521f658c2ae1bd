"""The HTTP client for hosts that a caller named: what it connects, what it keeps, and how it hangs up."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver

from aiservices.fetch.addresses import AllowList
from aiservices.fetch.refusal import Refusal
from aiservices.fetch.resolver import GuardedResolver
from aiservices.fetch.url import Target

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_ASKED: ContextVar[tuple[str, int] | None] = ContextVar("asked", default=None)
"""Host and port of the request that a socket is made for: a name of ``allow_hosts`` may lead to any address."""


RECEIVE_BYTES = 16 * 1024
"""Most bytes that are taken from a socket before others have their turn. The loop would take 256 KiB: 43 000 chunks of
one byte, 35 ms of parsing, for each download."""


class _Socket(socket.socket):
    """Gives at most ``RECEIVE_BYTES`` at a time, in the clear and below TLS."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        return super().recv(min(bufsize, RECEIVE_BYTES), flags)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        size_bytes = nbytes or memoryview(buffer).nbytes
        return super().recv_into(buffer, min(size_bytes, RECEIVE_BYTES), flags)


class SocketFactory:
    """Makes the sockets of every client that talks to hosts which callers name: the last place before a connection.

    It sees each address that is to be connected, of names and of literals alike, which no resolver does.

    Args:
        allowed: hosts that may be private.
    """

    def __init__(self, allowed: AllowList) -> None:
        self._allowed = allowed

    def __call__(self, addr_info: tuple[Any, Any, int, str, tuple[Any, ...]]) -> socket.socket:
        """Make a socket for an address, as ``getaddrinfo`` describes it.

        Raises:
            Refusal: the address is private.
        """
        family, kind, proto, _, (text, port, *_) = addr_info
        asked = _ASKED.get()
        named = asked is not None and asked[1] == port and self._allowed.covers_host(*asked)
        if not named and not self._permits(str(text), port):
            raise Refusal("points to a private address")
        return _Socket(family=family, type=kind, proto=proto)

    def _permits(self, text: str, port: int) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        return self._allowed.permits(address, port)


def guarded_connector(
    lookup: AbstractResolver, allowed: AllowList, *, tls: ssl.SSLContext | None = None
) -> aiohttp.TCPConnector:
    """Return a connector that connects only to addresses that were checked, each connection anew.

    Args:
        lookup: looks names up, without any check. The connector does not close it.
        allowed: hosts that may be private.
        tls: whom to trust; None takes the system's roots.
    """
    return aiohttp.TCPConnector(
        resolver=GuardedResolver(lookup, allowed),
        socket_factory=SocketFactory(allowed),
        use_dns_cache=False,
        force_close=True,
        limit=0,
        ssl=tls or True,
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
    token = _ASKED.set((target.host, target.port))
    try:
        response = await session.request(method, target.url, headers=headers, data=body, allow_redirects=False)
    finally:
        _ASKED.reset(token)
    try:
        yield response
    finally:
        # A polite TLS goodbye would wait half a minute for a peer that we have just found hostile.
        connection = response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        response.close()
