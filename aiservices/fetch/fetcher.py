"""The fetcher: one guarded client for every URL that a caller gave."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

import aiohttp
from aiohttp.abc import AbstractResolver

from aiservices.fetch.addresses import AllowList
from aiservices.fetch.body import read_body
from aiservices.fetch.client import guarded_connector, request, untrusting_session
from aiservices.fetch.data_url import decode_data_url
from aiservices.fetch.hosts import HostSlots
from aiservices.fetch.media_type import check_kind
from aiservices.fetch.refusal import Failure, FetchResult, in_words, time_limit
from aiservices.fetch.resolver import SystemResolver
from aiservices.fetch.url import check_url, host_of, next_url
from aiservices.handler import MediaKind
from aiservices.logs import get_logger
from aiservices.settings import FetchConfig
from aiservices.spans import Span, start
from aiservices.trace import Trace

log = get_logger(__name__)

_DECODE_ON_LOOP_CHARS = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def _ignore(result: FetchResult, seconds: float) -> None:
    return None


class Fetcher:
    """Downloads callers' URLs through the guard. One per process; ``start`` and ``close`` run on the loop.

    Args:
        config: bounds, and the hosts that may be private.
        pool: decodes large ``data:`` URLs; None takes the loop's own pool.
        resolver: looks names up, without any check; None asks the system, in threads of its own. The caller closes it.
        tls: whom to trust; None takes the system's roots.
        on_result: told on the loop how each download ended, and after how many seconds.
    """

    def __init__(
        self,
        config: FetchConfig,
        *,
        pool: Executor | None = None,
        resolver: AbstractResolver | None = None,
        tls: ssl.SSLContext | None = None,
        on_result: Callable[[FetchResult, float], None] = _ignore,
    ) -> None:
        self._config = config
        self._on_result = on_result
        self._pool = pool
        self._allowed = AllowList.parse(config.allow_hosts)
        self._resolver = resolver or SystemResolver(config.max_concurrency)
        self._owns_resolver = resolver is None
        self._closed = False
        self._tls = tls
        self._slots = HostSlots(config.max_concurrency, config.max_per_host)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the client. Calling it again does nothing."""
        if self._session is not None:
            return
        if self._closed and self._owns_resolver:
            self._resolver = SystemResolver(self._config.max_concurrency)
        self._closed = False
        self._session = untrusting_session(
            guarded_connector(self._resolver, self._allowed, tls=self._tls),
            connect_timeout_s=self._config.connect_timeout_s,
            user_agent=self._config.user_agent,
        )

    async def close(self) -> None:
        """Close the client and the lookup; what still runs ends as failed. Calling it again does nothing."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        if self._owns_resolver:
            await self._resolver.close()

    def check_url(self, url: str, *, field: str) -> None:
        """Refuse what can be refused without asking the network, for an answer at submission. ``data:`` is refused too.

        Raises:
            Refused: scheme, form, user name, or a literal address (or ``localhost``) that is not public.
        """
        try:
            check_url(url, self._allowed)
        except Failure as error:
            failure = error
        else:
            return
        raise failure.as_error(field)

    async def fetch(
        self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None, trace: Trace | None = None
    ) -> bytes:
        """Download an ``http``, ``https`` or ``data:`` URL and make sure by its bytes that it is of the kind.

        The time begins when one of ``max_concurrency`` slots is free, and one of ``max_per_host`` for its host; the
        wait for them ends with the job that waits.

        Args:
            url: as the caller gave it.
            field: JSON path of the input field, for messages, as ``$.image_url``.
            kind: what the bytes have to be.
            max_bytes: a bound below the configured one.
            trace: the job's; the download is a child of it.

        Raises:
            FetchError: whatever went wrong, in one line; :class:`Refused` where the guard forbids it.
        """
        limit_bytes = self._config.max_bytes if max_bytes is None else min(max_bytes, self._config.max_bytes)
        span, result, started_s = _begin_span(url, trace), FetchResult.CANCELLED, time.monotonic()
        try:
            data = await self._get(url, kind, limit_bytes, {} if span is None else span.trace.headers())
            check_kind(data, kind)
        except Failure as error:
            failure, result = error, error.result
        else:
            result = FetchResult.OK
            seconds = round(time.monotonic() - started_s, 3)
            log.debug("fetch.done", host=host_of(url), bytes=len(data), seconds=seconds)
            return data
        finally:
            self._on_result(result, time.monotonic() - started_s)
            if span is not None:
                span.end(error="" if result is FetchResult.OK else result.value)
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
        sent = {"Content-Type": "application/json", **headers}
        return await self._send("POST", url, body, headers=sent, timeout_s=timeout_s, field=field)

    async def put(self, url: str, body: bytes, *, headers: Mapping[str, str], timeout_s: float, field: str) -> int:
        """PUT a body as :meth:`post_json` posts one.

        Args:
            url: of a host that a caller named.
            body: what to send.
            headers: sent with it.
            timeout_s: for all of it.
            field: JSON path for messages.

        Returns:
            The HTTP status.

        Raises:
            FetchError: the answer did not come; :class:`Refused` where the guard forbids the URL.
        """
        return await self._send("PUT", url, body, headers=headers, timeout_s=timeout_s, field=field)

    async def _send(
        self, method: str, url: str, body: bytes, *, headers: Mapping[str, str], timeout_s: float, field: str
    ) -> int:
        try:
            async with time_limit(timeout_s):
                with in_words():
                    target = check_url(url, self._allowed)
                    async with request(self._running_session(), method, target, headers=headers, data=body) as response:
                        return response.status
        except Failure as error:
            failure = error
        raise failure.as_error(field)

    async def _get(self, url: str, kind: MediaKind, limit_bytes: int, headers: Mapping[str, str]) -> bytes:
        if url[:5].lower() == "data:":
            if len(url) <= _DECODE_ON_LOOP_CHARS:
                return decode_data_url(url, limit_bytes)
            return await asyncio.get_running_loop().run_in_executor(self._pool, decode_data_url, url, limit_bytes)
        async with self._slots.taken(host_of(url)), time_limit(self._config.timeout_s):
            return await self._download(url, kind, limit_bytes, headers)

    async def _download(self, url: str, kind: MediaKind, limit_bytes: int, headers: Mapping[str, str]) -> bytes:
        """Follow the redirects by hand: each hop passes the whole guard."""
        for hop in range(self._config.max_redirects + 1):
            with in_words("redirects to a URL that " if hop else ""):
                target = check_url(url, self._allowed)
                async with request(self._running_session(), "GET", target, headers=headers) as response:
                    if response.status not in _REDIRECTS:
                        return await read_body(response, kind, limit_bytes)
                    location = response.headers.get("Location")
            url = next_url(target, response.status, location)
        raise Failure(f"redirects more than {self._config.max_redirects} times", FetchResult.STATUS)

    def _running_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise Failure("could not be fetched: the downloader is not running", FetchResult.CANCELLED)
        return self._session


def _begin_span(url: str, trace: Trace | None) -> Span | None:
    """A span of a download over the network."""
    if trace is None or url[:5].lower() == "data:":
        return None
    return start("fetch", trace, kind="client", attributes={"server.address": host_of(url)})
