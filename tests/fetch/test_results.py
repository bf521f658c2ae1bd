"""How downloads are counted: one of a few words for each, told once, whatever the URL was."""

from __future__ import annotations

import asyncio
import socket

import attrs
import pytest
from aiohttp import web

from aiservices.errors import FetchError
from aiservices.fetch import FetchResult
from tests.fetch.helpers import LOOPBACK, OK, PNG, Names, Serve, answering, fetching, redirecting, writing


class Told:
    """What a fetcher told of its downloads."""

    def __init__(self) -> None:
        self.results: list[FetchResult] = []

    def __call__(self, result: FetchResult, seconds: float) -> None:
        assert seconds >= 0
        self.results.append(result)


async def results_of(url: object, timeout_s: float = 10.0) -> list[FetchResult]:
    """Download a URL; return what it counts as."""
    told = Told()
    async with fetching(attrs.evolve(LOOPBACK, timeout_s=timeout_s), Names({}), on_result=told) as fetcher:
        try:
            await fetcher.fetch(str(url), field="$.image_url", kind="image", max_bytes=10_000)
        except FetchError:
            assert told.results != [FetchResult.OK]
    return told.results


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (answering(PNG), FetchResult.OK),
        (answering(b"", status=404), FetchResult.STATUS),
        (redirecting("/"), FetchResult.STATUS),
        (redirecting("http://10.0.0.1/"), FetchResult.REFUSED),
        (answering(PNG + bytes(20_000)), FetchResult.TOO_LARGE),
        (answering(b"RIFF1234WAVE"), FetchResult.MEDIA_TYPE),
        (answering(b""), FetchResult.MEDIA_TYPE),
        (answering(PNG, headers={"Content-Encoding": "gzip"}), FetchResult.BROKEN_OFF),
    ],
)
async def test_an_answer_is_counted(serve: Serve, answer: object, result: FetchResult) -> None:
    assert await results_of(await serve(answer)) == [result]


@pytest.mark.parametrize(
    ("url", "result"),
    [
        ("http://10.0.0.1/a.png", FetchResult.REFUSED),
        ("ftp://example.org/a.png", FetchResult.REFUSED),
        ("http://nowhere.test/a.png", FetchResult.DNS),
        ("data:image/png;base64,?", FetchResult.DATA_URL),
        ("data:image/png", FetchResult.DATA_URL),
    ],
)
async def test_a_url_is_counted(url: str, result: FetchResult) -> None:
    assert await results_of(url) == [result]


async def speak_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 this is no TLS\r\n")


async def test_connections_are_counted(serve_raw: Serve) -> None:
    broken = await serve_raw(writing(OK + b"Content-Length: 1000\r\n\r\n" + PNG))
    assert await results_of(broken) == [FetchResult.BROKEN_OFF]
    plain = str(await serve_raw(speak_plainly))
    assert await results_of(plain.replace("http:", "https:")) == [FetchResult.TLS]
    assert await results_of(await serve_raw(writing(stall=True)), timeout_s=0.05) == [FetchResult.TIMEOUT]
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert await results_of(f"http://127.0.0.1:{unused.getsockname()[1]}/") == [FetchResult.CONNECT]


async def test_a_download_that_nobody_needs_any_more_is_counted(serve: Serve) -> None:
    told, began = Told(), asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with fetching(LOOPBACK, on_result=told) as fetcher:
        url = str(await serve(hang))
        download = asyncio.create_task(fetcher.fetch(url, field="$.image_url", kind="image"))
        await began.wait()
        download.cancel()
        await asyncio.wait([download])
    assert told.results == [FetchResult.CANCELLED]
