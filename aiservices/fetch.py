"""The guarded download of URLs that strangers gave us, and the guarded POST to them.

A URL that a caller may choose lets the caller send requests from inside our network (server-side request forgery,
CWE-918). What holds against that:

* Only ``http`` and ``https`` are connected; ``data:`` is decoded here. No user names or passwords, no host that one
  program reads as a name and another as a number. Any port from 1 to 65535: presigned URLs and test servers use odd
  ones, and what a port could reach is decided by its address.
* Only public addresses, see :func:`is_public`, but for those in ``allow_hosts``. If one of a name's addresses is not
  public the whole name is refused. A name is looked up once per connection and exactly the addresses that were checked
  are connected, so a second answer of its DNS server (rebinding) finds no one who asks. No proxy, no ``.netrc``.
* A redirect is a new URL and checked as one. From ``https`` to ``http`` is refused: the caller's secret may be in it.
* Bounds on URL, redirects, size, concurrency and the time to connect and in all. Nothing is ever decompressed: a
  compressed answer is refused, so there is no bomb to defuse (a decoder of pictures has to bound its pixels itself).
* Nothing is kept between two downloads: no cookies, no open connection, no DNS cache.

Presigned URLs are secrets: logs and errors name the host at most, never path, query or a byte of the body.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import functools
import io
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import ClassVar, TypeAlias
from urllib.parse import unquote_to_bytes, urljoin

import aiohttp
import attrs
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from aiservices.errors import ConfigError, FetchError
from aiservices.handler import MediaKind
from aiservices.logs import get_logger
from aiservices.settings import FetchConfig

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

log = get_logger(__name__)

_MAX_URL_CHARS = 8192
_MAX_ADDRESSES = 8  # each is tried for connect_timeout_s, and a hostile name may have hundreds
_CHUNK_BYTES = 64 * 1024
_DECODE_ON_LOOP_CHARS = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Refused(FetchError):
    """The guard forbids the URL, or the address behind it: trying again changes nothing."""


class Fetcher:
    """Downloads strangers' URLs through the guard. One per process; ``start`` and ``close`` run on the loop.

    Args:
        config: bounds, and the hosts that may be private.
        pool: decodes large ``data:`` URLs; None takes the loop's own pool.
        resolver: looks names up, without any check; None asks the system, in threads of its own. The caller closes it.
        tls: whom to trust; None takes the system's roots.
    """

    def __init__(
        self,
        config: FetchConfig,
        *,
        pool: Executor | None = None,
        resolver: AbstractResolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._config = config
        self._pool = pool
        self._allowed = AllowList.parse(config.allow_hosts)
        self._resolver = resolver
        self._own_resolver: AbstractResolver | None = None
        self._tls = tls
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the client. Calling it again does nothing."""
        if self._session is not None:
            return
        if self._resolver is None:
            # The slots bound the lookups too: one thread for each, so that slow DNS servers starve no one else.
            self._own_resolver = _SystemResolver(max_threads=self._config.max_concurrency)
        lookup = self._resolver or self._own_resolver
        assert lookup is not None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_GuardedResolver(lookup, self._allowed),
                use_dns_cache=False,
                force_close=True,
                limit=0,
                ssl=self._tls or True,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            # asyncio.timeout bounds the whole; aiohttp's own total would not cover our redirects.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._config.connect_timeout_s),
            headers={"User-Agent": self._config.user_agent, "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        """Close the client; downloads that still run end as failed. Calling it again does nothing."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        resolver, self._own_resolver = self._own_resolver, None
        if resolver is not None:
            await resolver.close()

    def check_url(self, url: str, *, field: str) -> None:
        """Refuse what can be refused without asking the network, for an answer at submission. ``data:`` is refused too.

        Raises:
            Refused: scheme, form, user name, or a literal address (or ``localhost``) that is not public.
        """
        try:
            _check(url, self._allowed)
        except _Failed as error:
            failure = error
        else:
            return
        raise failure.as_error(field)

    def guarded_resolver(self) -> AbstractResolver:
        """Return a resolver for other clients of strangers' hosts: it gives public addresses, or those allowed, only.

        It never sees a host that is a literal address: who uses it calls :meth:`check_url` too. The caller closes it.
        """
        lookup = self._resolver or _SystemResolver(max_threads=self._config.max_concurrency)
        return _GuardedResolver(lookup, self._allowed)

    async def fetch(self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None) -> bytes:
        """Download an ``http``, ``https`` or ``data:`` URL and make sure by its bytes that it is of the kind.

        The time begins when one of ``max_concurrency`` slots is free; the wait for a slot ends with the job that waits.

        Args:
            url: as the caller gave it.
            field: JSON path of the input field, for messages, as ``$.image_url``.
            kind: what the bytes have to be.
            max_bytes: a bound below the configured one.

        Raises:
            FetchError: whatever went wrong, in one line; :class:`Refused` where the guard forbids it.
        """
        limit_bytes = self._config.max_bytes if max_bytes is None else min(max_bytes, self._config.max_bytes)
        started_s = time.monotonic()
        try:
            data = await self._get(url, kind, limit_bytes)
            _check_kind(data, kind)
        except _Failed as error:
            failure = error
        else:
            seconds = round(time.monotonic() - started_s, 3)
            log.debug("fetch.done", host=host_of(url), bytes=len(data), seconds=seconds)
            return data
        # Raised out here, the error carries no exception of the client along, whose text holds the whole URL.
        log.info(failure.event, host=host_of(url), reason=failure.reason)
        raise failure.as_error(field)

    async def post_json(
        self, url: str, body: bytes, *, headers: Mapping[str, str], timeout_s: float, field: str = "$.webhook"
    ) -> int:
        """POST a JSON body through the same guard. Redirects are not followed and the answer's body is not read.

        Takes no slot: who sends many at a time has to bound that.

        Args:
            url: as the caller gave it.
            body: encoded JSON.
            headers: sent beside ``Content-Type``.
            timeout_s: for all of it.
            field: JSON path for messages.

        Returns:
            The HTTP status.

        Raises:
            FetchError: the answer did not come; :class:`Refused` where the guard forbids the URL.
        """
        try:
            async with _limited(timeout_s):
                with _in_words():
                    target = _check(url, self._allowed)
                    sent = {"Content-Type": "application/json", **headers}
                    async with self._open("POST", target, headers=sent, data=body) as response:
                        return response.status
        except _Failed as error:
            failure = error
        raise failure.as_error(field)

    async def _get(self, url: str, kind: MediaKind, limit_bytes: int) -> bytes:
        if url[:5].lower() == "data:":
            if len(url) <= _DECODE_ON_LOOP_CHARS:
                return _decode_data_url(url, limit_bytes)
            return await asyncio.get_running_loop().run_in_executor(self._pool, _decode_data_url, url, limit_bytes)
        async with self._slots, _limited(self._config.timeout_s):
            return await self._download(url, kind, limit_bytes)

    async def _download(self, url: str, kind: MediaKind, limit_bytes: int) -> bytes:
        """Follow the redirects by hand: each hop passes the whole guard."""
        for hop in range(self._config.max_redirects + 1):
            with _in_words("redirects to a URL that " if hop else ""):
                target = _check(url, self._allowed)
                async with self._open("GET", target) as response:
                    if response.status not in _REDIRECTS:
                        return await _read(response, kind, limit_bytes)
                    location = response.headers.get("Location")
            url = _next_url(target, response.status, location)
        raise _Failed(f"redirects more than {self._config.max_redirects} times")

    @contextlib.asynccontextmanager
    async def _open(
        self, method: str, target: _Target, *, headers: Mapping[str, str] | None = None, data: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise _Failed("could not be fetched: the downloader is not running")
        # A stream, because aiohttp writes bytes at one go and warns about that above 1 MiB.
        body = None if data is None else io.BytesIO(data)
        response = await self._session.request(method, target.url, headers=headers, data=body, allow_redirects=False)
        try:
            yield response
        finally:
            # A polite TLS goodbye would wait half a minute for a peer that we have just found hostile.
            connection = response.connection
            if connection is not None and connection.transport is not None:
                connection.transport.abort()
            response.close()


# What goes wrong, before the caller's field is known


class _Failed(Exception):
    """A reason in one line that follows on "the URL …"."""

    error: ClassVar[type[FetchError]] = FetchError
    event: ClassVar[str] = "fetch.failed"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def as_error(self, field: str) -> FetchError:
        return self.error(field, self.reason)


class _Refused(_Failed):
    error = Refused
    event = "fetch.refused"


_CLIENT_ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientConnectorCertificateError, "has a TLS certificate that is not trusted"),
    (aiohttp.ClientSSLError, "failed in the TLS handshake"),
    (aiohttp.ClientConnectorDNSError, "has a host that could not be resolved"),
    (TimeoutError, "could not be connected in time"),
    (aiohttp.ClientConnectorError, "could not be connected"),
    (aiohttp.ServerDisconnectedError, "closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "broke off before its end"),
    (aiohttp.ClientResponseError, "did not answer in proper HTTP"),
)
"""The first that fits wins, so subclasses stand above their bases."""


@contextlib.contextmanager
def _in_words(prefix: str = "") -> Iterator[None]:
    """Turn the client's errors, whose texts hold URLs and addresses, into reasons of ours."""
    try:
        yield
    except _Failed as error:
        raise type(error)(prefix + error.reason) from None
    except (aiohttp.ClientError, OSError) as error:
        reason = next((text for kind, text in _CLIENT_ERRORS if isinstance(error, kind)), "broke the connection")
        raise _Failed(prefix + reason) from None


@contextlib.asynccontextmanager
async def _limited(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise _Failed(f"took longer than {timeout_s:g} s") from None


# The URL


@attrs.frozen
class _Target:
    """A URL that may be connected as far as its text tells."""

    url: URL
    host: str
    port: int


_HEAD = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,31}):(?://(?P<authority>[^/?#]*))?")
_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:%]+)(?::[0-9]{1,5})?", re.ASCII)
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_UNQUOTED = re.compile(r"[^A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]|%(?![0-9A-Fa-f]{2})")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def host_of(url: str) -> str:
    """Return the part of a URL that may be logged: its host; ``data:`` or ``?`` where there is none."""
    if url[:5].lower() == "data:":
        return "data:"
    try:
        return _parse(url).host
    except _Failed:
        return "?"


def _check(url: str, allowed: AllowList) -> _Target:
    """Check what the text alone tells; the addresses of a name are checked when it is looked up."""
    target = _parse(url)
    address = _literal(target.host)
    if address is not None:
        # aiohttp asks no resolver about a literal address, so this is the one place where it is seen.
        public = is_public(address) or allowed.covers_address(address, target.port)
    else:
        local = target.host == "localhost" or target.host.endswith(".localhost")  # RFC 6761, section 6.3
        public = not local or allowed.covers_host(target.host, target.port)
    if not public:
        raise _Refused("points to a private address")
    return target


def _parse(text: str) -> _Target:
    if len(text) > _MAX_URL_CHARS:
        raise _Refused(f"is longer than {_MAX_URL_CHARS} characters")
    if _UNSAFE.search(text):
        raise _Refused("holds a space, a control character or a backslash")
    head = _HEAD.match(text)
    if head is None:
        raise _Refused("is not a URL with a scheme")
    if (scheme := head["scheme"].lower()) not in ("http", "https"):
        raise _Refused(f"has the scheme {scheme!r}; http and https are accepted")
    authority = head["authority"] or ""
    if "@" in authority:
        raise _Refused("holds a user name or a password")
    if not _AUTHORITY.fullmatch(authority):
        raise _Refused("has no valid host and port")
    return _build(text)


def _build(text: str) -> _Target:
    try:
        # Quoted anew, a URL that is signed over its exact text would fail; so that is done only where it must be.
        url = URL(text, encoded=_UNQUOTED.search(text) is None)
        host, port = (url.raw_host or "").lower().removesuffix("."), url.port
    except ValueError:
        raise _Refused("is not a valid URL") from None
    _literal(host)
    if not port:
        raise _Refused("has no valid host and port")
    return _Target(url, host, port)


def _literal(host: str) -> Address | None:
    """Return the address that a host spells, None for a name; refuse what is neither for everyone who may read it.

    A host whose last label is a number is an IPv4 address to browsers and ``inet_aton`` (WHATWG URL, "ends in a
    number"), in short, octal or hex form too: only four plain decimals pass.
    """
    labels = host.split(".")
    try:
        if ":" in host:
            return ipaddress.IPv6Address(host)
        if _NUMBER.fullmatch(labels[-1]):
            return ipaddress.IPv4Address(host)
    except ValueError:
        raise _Refused("has a host that is neither a name nor a plain IP address") from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _Refused("has a host that is neither a name nor a plain IP address")
    return None


def _next_url(target: _Target, status: int, location: str | None) -> str:
    if not location:
        raise _Failed(f"answered {status} without a Location")
    try:
        url = urljoin(str(target.url), location)
    except ValueError:
        raise _Refused("redirects to a URL that is not valid") from None
    if target.url.scheme == "https" and url[:5].lower() == "http:":
        raise _Refused("redirects from https to http")
    return url


# The addresses

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # IETF protocol assignments, RFC 6890
        "192.88.99.0/24",  # the withdrawn 6to4 relays, RFC 7526
        "168.63.129.16/32",  # public by number, but inside Azure it is the host's own agent
        "2001::/23",  # IETF protocol assignments, RFC 2928; Teredo, which may embed any IPv4 address, is among them
        "2001:db8::/32",  # documentation, RFC 3849
        "2002::/16",  # 6to4, withdrawn by RFC 7526; embeds any IPv4 address
        "3fff::/20",  # documentation, RFC 9637
    )
)
"""What :mod:`ipaddress` of some supported Python calls global, and we do not."""

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out, RFC 4291
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052; behind DNS64 every IPv4-only name resolves into it


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the public internet, where nobody's inside is.

    Stricter than ``is_global``: no multicast, and of IPv6 the assigned unicast space alone (RFC 4291), without zones.
    An IPv4 address that is mapped (``::ffff:0:0/96``) or translated (NAT64, RFC 6052) is judged as itself; the other
    ways to embed one (6to4, Teredo, IPv4-compatible) are refused as a whole.
    """
    if isinstance(address, ipaddress.IPv6Address):
        embedded = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if address.ipv4_mapped is not None or address in _NAT64:
            return address.scope_id is None and is_public(embedded)
        if address.scope_id is not None or address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in _NOT_PUBLIC)


@attrs.frozen
class AllowList:
    """Hosts of one's own that may be private. An entry without a port allows every port.

    A name is allowed whatever it resolves to; an address or network also by any name that resolves into it.
    """

    hosts: frozenset[tuple[str, int | None]]
    networks: tuple[tuple[Network, int | None], ...]

    @classmethod
    def parse(cls, entries: Iterable[str]) -> AllowList:
        """Read ``minio``, ``minio:9000``, ``127.0.0.1:9000``, ``[::1]:9000`` or ``10.0.0.0/8``.

        Raises:
            ConfigError: naming the entry.
        """
        hosts: set[tuple[str, int | None]] = set()
        networks: list[tuple[Network, int | None]] = []
        for entry in entries:
            name, port = _split_port(entry.strip().lower())
            try:
                networks.append((ipaddress.ip_network(name.strip("[]")), port))
            except ValueError:
                hosts.add((_allowed_name(name, entry), port))
        return cls(frozenset(hosts), tuple(networks))

    def covers_host(self, host: str, port: int) -> bool:
        """Tell whether a name and port are allowed as they are written."""
        name = host.lower().removesuffix(".")
        return (name, port) in self.hosts or (name, None) in self.hosts

    def covers_address(self, address: Address, port: int) -> bool:
        """Tell whether an address and port lie in an allowed network."""
        plain = getattr(address, "ipv4_mapped", None) or address
        return any(plain in network and allowed_port in (None, port) for network, allowed_port in self.networks)


def _split_port(entry: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(?P<host>\[[^\]]+\]|[^:]+):(?P<port>[0-9]{1,5})", entry)
    return (match["host"], int(match["port"])) if match else (entry, None)


def _allowed_name(name: str, entry: str) -> str:
    try:
        if _literal(name.removesuffix(".")) is None:
            return name.removesuffix(".")
    except _Failed:
        pass
    raise ConfigError(f"[fetch] allow_hosts: {entry!r} is not a host, host:port, address or network")


class _GuardedResolver(AbstractResolver):
    """Hands the connector only addresses that were checked; they are what it connects."""

    def __init__(self, lookup: AbstractResolver, allowed: AllowList) -> None:
        self._lookup = lookup
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._lookup.resolve(host, port, family)
        if not found:
            raise OSError("no address")
        if not self._allowed.covers_host(host, port) and not all(self._may_connect(one, port) for one in found):
            raise _Refused("resolves to a private address")
        return found[:_MAX_ADDRESSES]

    async def close(self) -> None:
        """Leave the lookup to its owner."""

    def _may_connect(self, found: ResolveResult, port: int) -> bool:
        try:
            address = ipaddress.ip_address(found["host"])
        except ValueError:
            return False
        return is_public(address) or self._allowed.covers_address(address, port)


class _SystemResolver(AbstractResolver):
    """``getaddrinfo`` in its own threads: a slow lookup cannot be cancelled and must not fill the loop's pool."""

    def __init__(self, max_threads: int) -> None:
        self._threads = ThreadPoolExecutor(max_threads, thread_name_prefix="fetch-dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        lookup = functools.partial(
            socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        found = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        return [
            {
                "hostname": host,
                "host": str(sockaddr[0]),
                "port": port,
                "family": found_family,
                "proto": proto,
                "flags": socket.AI_NUMERICHOST,
            }
            for found_family, _, proto, _, sockaddr in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False)


# The body


async def _read(response: aiohttp.ClientResponse, kind: MediaKind, limit_bytes: int) -> bytes:
    if response.status != 200:
        raise _Failed(f"answered {response.status}")
    if any(value.strip().lower() not in ("", "identity") for value in response.headers.getall("Content-Encoding", ())):
        raise _Failed("is sent with a Content-Encoding, though none was asked for")
    if (response.content_length or 0) > limit_bytes:
        raise _too_large(limit_bytes)
    body = io.BytesIO()  # a list of chunks would let one-byte chunks cost forty times their size
    judged = False
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body.write(chunk)
        if body.tell() > limit_bytes:
            raise _too_large(limit_bytes)
        if not judged and body.tell() >= _SNIFF_BYTES:
            _check_kind(body.getvalue(), kind)
            judged = True
    return body.getvalue()


def _too_large(limit_bytes: int) -> _Failed:
    mib = limit_bytes / 1024 / 1024
    return _Failed(f"is larger than {f'{mib:g} MiB' if mib.is_integer() else f'{limit_bytes} bytes'}")


_DATA_CHARS = (
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:/?[]@!$&'()*+,;=%"  # RFC 3986, no "#"
)
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_MAX_DATA_HEAD_CHARS = 256
_SLICE_BYTES = 64 * 1024  # a multiple of 4; small, because each piece is worked on with the interpreter lock held


def _decode_data_url(url: str, limit_bytes: int) -> bytes:
    """Decode a ``data:`` URL (RFC 2397) strictly: standard base64 with its padding (RFC 4648), or percent form.

    The size is bounded before anything is decoded. The media type is not looked at: the bytes tell.
    """
    comma = url.find(",", 0, _MAX_DATA_HEAD_CHARS)
    if comma < 0:
        raise _Failed("is a data: URL without a comma near its beginning")
    base64 = url[:comma].lower().endswith(";base64")
    encoded_limit = (limit_bytes + 2) // 3 * 4 if base64 else limit_bytes
    if len(url) - comma - 1 > encoded_limit * 3:  # every character may be percent-encoded
        raise _too_large(limit_bytes)
    payload = _percent_decoded(url, comma + 1)
    if len(payload) > encoded_limit:
        raise _too_large(limit_bytes)
    data = _base64_decoded(payload) if base64 else payload
    if len(data) > limit_bytes:
        raise _too_large(limit_bytes)
    return data


def _percent_decoded(url: str, begin: int) -> bytes:
    decoded = io.BytesIO()
    while begin < len(url):
        end = begin + _SLICE_BYTES
        cut = url.rfind("%", end - 2, end)  # no piece may end inside an escape
        end = end if cut < 0 else cut
        decoded.write(_percent_decoded_piece(url[begin:end]))
        begin = end
    return decoded.getvalue()


def _percent_decoded_piece(text: str) -> bytes:
    piece = text.encode("ascii", "backslashreplace")  # and a backslash is refused
    if piece.translate(None, _DATA_CHARS) or _BROKEN_ESCAPE.search(piece):
        raise _Failed("is a data: URL with characters that a URL may not hold")
    return unquote_to_bytes(piece) if b"%" in piece else piece


def _base64_decoded(payload: bytes) -> bytes:
    padding = payload.find(b"=")
    if len(payload) % 4 or 0 <= padding < len(payload) - 2:
        raise _Failed("is a data: URL that is not valid base64")
    decoded = io.BytesIO()
    for begin in range(0, len(payload), _SLICE_BYTES):
        try:
            decoded.write(binascii.a2b_base64(payload[begin : begin + _SLICE_BYTES], strict_mode=True))
        except binascii.Error:
            raise _Failed("is a data: URL that is not valid base64") from None
    return decoded.getvalue()


# What the bytes are

_SNIFF_BYTES = 64

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"II+\0", "image/tiff"),
    (b"MM\0+", "image/tiff"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"\x1aE\xdf\xa3", "audio/webm"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
    (b"<!doctype html", "text/html"),
    (b"<html", "text/html"),
    (b"<svg", "image/svg+xml"),
    (b"<?xml", "text/xml"),
)
_FORMS = {
    (b"RIFF", b"WEBP"): "image/webp",
    (b"RIFF", b"WAVE"): "audio/wav",
    (b"RF64", b"WAVE"): "audio/wav",
    (b"RIFF", b"AVI "): "video/avi",
    (b"FORM", b"AIFF"): "audio/aiff",
    (b"FORM", b"AIFC"): "audio/aiff",
}
# ISO base media files tell by their major brand; what only says "ISO file" may well be sound: its decoder will tell.
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "image/heic"),
    **dict.fromkeys(
        (b"M4A ", b"M4B ", b"mp41", b"mp42", b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"dash"), "audio/mp4"
    ),
}
_BMP_HEADER_BYTES = frozenset({12, 40, 52, 56, 64, 108, 124})

_ACCEPTED: Mapping[MediaKind, frozenset[str]] = {
    "image": frozenset(
        {"image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp", "image/tiff", "image/avif", "image/heic"}
    ),
    "audio": frozenset(
        {"audio/wav", "audio/flac", "audio/mpeg", "audio/ogg", "audio/mp4", "audio/aac", "audio/webm", "audio/aiff"}
    ),
}
_WANTED: Mapping[MediaKind, str] = {
    "image": "a picture (PNG, JPEG, GIF, WebP, BMP, TIFF, AVIF, HEIC)",
    "audio": "a sound file (WAV, FLAC, MP3, Ogg, M4A, AAC, WebM, AIFF)",
}


def sniff(data: bytes) -> str:
    """Return the media type that the first bytes tell, ``text/plain`` for what reads as text, else an empty string.

    A table of our own, because it is short and because of what there is: the puremagic that runs on all our Pythons is
    its frozen 1.x and ranks guesses by confidence, which is not a yes or no; filetype had its last release in 2022.
    """
    head = data[:_SNIFF_BYTES]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for signature, media_type in _SIGNATURES:
        if head.startswith(signature) or (signature[:1] == b"<" and text.startswith(signature)):
            return media_type
    if found := _FORMS.get((head[:4], head[8:12])):
        return found
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_BYTES:
        return "image/bmp"
    return _sniff_frames(head) or ("text/plain" if head and not re.search(rb"[^\t\r\n\x20-\x7e]", head) else "")


def _sniff_frames(head: bytes) -> str:
    """Find sound that begins with a bare frame: MPEG layer III (ISO 11172-3, 2.4.1.3) or AAC in ADTS."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return ""
    if head[1] & 0xF6 == 0xF0:
        return "audio/aac"
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    return "audio/mpeg" if layer == 1 and version != 1 and 0 < bitrate < 15 and rate != 3 else ""


def _check_kind(data: bytes, kind: MediaKind) -> None:
    if not data:
        raise _Failed("is empty")
    found = sniff(data)
    if found not in _ACCEPTED[kind]:
        raise _Failed(f"is {found or 'of an unknown type'}, not {_WANTED[kind]}")
