"""What the client sends, keeps and ignores."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import attrs
import pytest
from aiohttp import web

from tests.fetch.helpers import (
    LOOPBACK,
    OK,
    PNG,
    Serve,
    answering,
    fetching,
    until_closed,
    writing,
)


async def test_no_proxy_of_the_environment_is_used(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    url = await serve(answering(PNG))
    async with fetching(LOOPBACK) as fetcher:
        assert await fetcher.fetch(str(url), field="$.image_url", kind="image") == PNG


async def test_the_request_carries_no_cookie_and_asks_for_no_compression(serve: Serve) -> None:
    seen: list[Mapping[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers)
        return web.Response(body=PNG, headers={"Set-Cookie": "id=1; Path=/"})

    url = await serve(answer)
    async with fetching(attrs.evolve(LOOPBACK, user_agent="test/1")) as fetcher:
        for _ in range(2):
            await fetcher.fetch(str(url), field="$.image_url", kind="image")
    assert [headers["User-Agent"] for headers in seen] == ["test/1"] * 2
    assert [headers["Accept-Encoding"] for headers in seen] == ["identity"] * 2
    assert all("Cookie" not in headers and "Authorization" not in headers for headers in seen)


@pytest.mark.parametrize("path", ["/a%2Fb//c/../d~%7E?sig=a%2Bb%2f+c%3D%3d&x=1,2;3", "/?x=%E2%82%AC&y='(!)*", "/a%20b"])
async def test_a_signed_url_arrives_as_it_was_written(serve: Serve, path: str) -> None:
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        return web.Response(body=PNG)

    url = await serve(answer)
    async with fetching(LOOPBACK) as fetcher:
        await fetcher.fetch(str(url.origin()) + path + "#part", field="$.image_url", kind="image")
        await fetcher.fetch(str(url.origin()) + "/größe", field="$.image_url", kind="image")
    assert seen == [path, "/gr%C3%B6%C3%9Fe"]


async def test_a_finished_download_keeps_no_connection(serve_raw: Serve) -> None:
    closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writing(OK + b"Content-Length: %d\r\n\r\n" % len(PNG) + PNG)(reader, writer)
        await until_closed(reader, writer)
        closed.set()

    url = await serve_raw(answer)
    async with fetching(LOOPBACK) as fetcher:
        await fetcher.fetch(str(url), field="$.image_url", kind="image")
        await asyncio.wait_for(closed.wait(), 5)
