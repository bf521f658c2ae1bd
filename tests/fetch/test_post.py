"""The guarded POST."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from aiservices.errors import FetchError
from aiservices.fetch import Refused
from tests.fetch.helpers import (
    LOOPBACK,
    OK,
    Names,
    Serve,
    fetching,
    redirecting,
    writing,
)


async def test_a_post_returns_the_status_and_passes_headers_and_body(serve: Serve) -> None:
    seen: list[tuple[str, str, str, bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        seen.append((request.method, request.headers["Content-Type"], request.headers["X-One"], body))
        return web.Response(status=418)

    url = await serve(answer)
    async with fetching(LOOPBACK) as fetcher:
        status = await fetcher.post_json(str(url), b'{"id":"1"}', headers={"X-One": "1"}, timeout_s=2)
    assert status == 418
    assert seen == [("POST", "application/json", "1", b'{"id":"1"}')]


async def test_a_large_post_arrives_whole(serve: Serve) -> None:
    seen: list[int] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(len(b"".join([chunk async for chunk in request.content.iter_any()])))
        return web.Response()

    app_url = await serve(answer)
    async with fetching(LOOPBACK) as fetcher:
        assert await fetcher.post_json(str(app_url), b"1" * 3_000_000, headers={}, timeout_s=5) == 200
    assert seen == [3_000_000]


async def test_a_post_follows_no_redirect(serve: Serve) -> None:
    url = await serve(redirecting("http://127.0.0.1:1/", 307))
    async with fetching(LOOPBACK) as fetcher:
        assert await fetcher.post_json(str(url), b"{}", headers={}, timeout_s=2) == 307


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "http://inside.test/", "ftp://example.com/", "data:,a"])
async def test_a_post_passes_the_same_guard(url: str) -> None:
    async with fetching(names=Names({"inside.test": [["10.0.0.1"]]})) as fetcher:
        with pytest.raises(Refused) as caught:
            await fetcher.post_json(url, b"{}", headers={}, timeout_s=2)
    assert caught.value.field == "$.webhook"
    assert caught.value.__context__ is None


async def test_a_post_that_stalls_ends_in_its_own_time(serve_raw: Serve) -> None:
    url = await serve_raw(writing(stall=True))
    async with fetching(LOOPBACK) as fetcher:
        with pytest.raises(FetchError, match=r"took longer than 0\.05 s"):
            await fetcher.post_json(str(url), b"{}", headers={}, timeout_s=0.05)


async def test_a_receiver_that_talks_for_ever_is_not_listened_to(serve_raw: Serve) -> None:
    url = await serve_raw(writing(OK + b"Content-Length: 1000000\r\n\r\n", stall=True))
    async with fetching(LOOPBACK) as fetcher:
        assert await asyncio.wait_for(fetcher.post_json(str(url), b"{}", headers={}, timeout_s=5), 5) == 200
