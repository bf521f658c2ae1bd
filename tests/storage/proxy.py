"""A proxy in front of an S3 server that records every request and fails on demand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import attrs
from aiohttp import web
from yarl import URL

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "date"})


@attrs.frozen
class Seen:
    """One request that came."""

    method: str
    path: str
    query: str
    range: str

    @property
    def is_listing(self) -> bool:
        return self.method == "GET" and "list-type=2" in self.query

    @property
    def is_object(self) -> bool:
        return self.method == "GET" and not self.is_listing


@attrs.frozen
class Answer:
    """What the server behind it answers."""

    status: int
    headers: dict[str, str]
    body: bytes


Fault = Callable[[Seen, web.BaseRequest], Awaitable[web.StreamResponse | None]]


class FaultyProxy:
    """Passes on what no fault takes. Faults are asked in turn; one that returns None lets the request pass.

    Attributes:
        seen: every request so far.
        faults: what goes wrong.
    """

    def __init__(self, upstream: str) -> None:
        self.url = ""
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self._upstream = upstream
        self._came = asyncio.Condition()
        self._runner: web.ServerRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> FaultyProxy:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._runner is not None
        assert self._session is not None
        await self._runner.cleanup()
        await self._session.close()

    @property
    def objects(self) -> list[str]:
        """Paths of the objects that were asked for, one for each request."""
        return [seen.path.rpartition("/")[2] for seen in self.seen if seen.is_object]

    @property
    def listings(self) -> int:
        """How many listings were asked for."""
        return sum(seen.is_listing for seen in self.seen)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a request that makes it true."""
        async with self._came:
            await self._came.wait_for(condition)

    async def forward(self, request: web.BaseRequest, more: str = "") -> Answer:
        """Ask the server behind; ``more`` is put at the end of the query."""
        assert self._session is not None
        headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP_BY_HOP}
        url = URL(self._upstream + request.raw_path + more, encoded=True)
        body = await request.read()
        async with self._session.request(request.method, url, headers=headers, data=body) as response:
            kept = {key: value for key, value in response.headers.items() if key.lower() not in HOP_BY_HOP}
            length = response.headers.get("Content-Length", "0")
            if request.method == "HEAD":
                kept["Content-Length"] = length
            return Answer(response.status, kept, await response.read())

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        seen = Seen(request.method, request.path, request.query_string, request.headers.get("Range", ""))
        self.seen.append(seen)
        async with self._came:
            self._came.notify_all()
        for fault in list(self.faults):
            taken = await fault(seen, request)
            if taken is not None:
                return taken
        answer = await self.forward(request)
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


def error(code: str, status: int, *, times: int = 1_000_000, where: Callable[[Seen], Any] = lambda seen: True) -> Fault:
    """Answer with one of S3's errors, so many times."""
    left = iter(range(times))

    async def fault(seen: Seen, request: web.BaseRequest) -> web.StreamResponse | None:
        if not where(seen) or next(left, None) is None:
            return None
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        return web.Response(status=status, text="" if seen.method == "HEAD" else body, content_type="application/xml")

    return fault


def short_pages(proxy: FaultyProxy, entries: int) -> Fault:
    """Have listings come in pages of so many entries."""

    async def fault(seen: Seen, request: web.BaseRequest) -> web.StreamResponse | None:
        if not seen.is_listing:
            return None
        answer = await proxy.forward(request, f"&max-keys={entries}")
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    return fault


def cut(proxy: FaultyProxy, *, after: int, times: int = 1_000_000) -> Fault:
    """Close the connection in the middle of a body, so many times."""
    left = iter(range(times))

    async def fault(seen: Seen, request: web.BaseRequest) -> web.StreamResponse | None:
        if not seen.is_object:
            return None
        answer = await proxy.forward(request)
        if len(answer.body) <= after or next(left, None) is None:
            return None
        response = await _begin(request, answer)
        await response.write(answer.body[:after])
        assert request.transport is not None
        request.transport.close()
        return response

    return fault


def garbled(proxy: FaultyProxy, *, where: Callable[[Seen], Any], times: int = 1_000_000) -> Fault:
    """Send other bytes than there are, so many times."""
    left = iter(range(times))

    async def fault(seen: Seen, request: web.BaseRequest) -> web.StreamResponse | None:
        if not seen.is_object or not where(seen) or next(left, None) is None:
            return None
        answer = await proxy.forward(request)
        body = bytes(byte ^ 1 for byte in answer.body[:100]) + answer.body[100:]
        return web.Response(status=answer.status, headers=answer.headers, body=body)

    return fault


class Stall:
    """Sends some bytes of an object and no more until it is released.

    Args:
        where: which requests stall.
        after: how many bytes come before.
    """

    def __init__(self, proxy: FaultyProxy, *, where: Callable[[Seen], Any], after: int = 0, times: int = 1) -> None:
        self.reached = asyncio.Event()
        self.let_go = asyncio.Event()
        self._proxy = proxy
        self._where = where
        self._after = after
        self._left = iter(range(times))

    async def __call__(self, seen: Seen, request: web.BaseRequest) -> web.StreamResponse | None:
        """As a fault of the proxy."""
        if not seen.is_object or not self._where(seen) or next(self._left, None) is None:
            return None
        answer = await self._proxy.forward(request)
        response = await _begin(request, answer)
        with contextlib.suppress(ConnectionError):
            await response.write(answer.body[: self._after])
            self.reached.set()
            await self.let_go.wait()
            await response.write(answer.body[self._after :])
        return response


async def _begin(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body)
    await response.prepare(request)
    return response
