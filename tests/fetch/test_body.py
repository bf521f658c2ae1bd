"""Answers: status, size, encoding and what the bytes are."""

from __future__ import annotations

import asyncio
import contextlib
import gzip

import attrs
import pytest
from aiohttp import web

from aiservices.handler import MediaKind
from tests.fetch.helpers import (
    LOOPBACK,
    OK,
    PNG,
    WAV,
    Serve,
    answering,
    fetching,
    reason_of,
    writing,
)


@pytest.mark.parametrize("status", [201, 204, 206, 300, 304, 401, 403, 404, 418, 500, 503])
async def test_any_status_but_200_fails_and_is_named(serve: Serve, status: int) -> None:
    url = await serve(answering(b"" if status in (204, 304) else b"the server's own words", status=status))
    async with fetching(LOOPBACK) as fetcher:
        assert await reason_of(fetcher, url) == f"answered {status}"


@pytest.mark.parametrize("chunked", [True, False])
async def test_what_is_too_large_is_cut_off(serve: Serve, chunked: bool) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = 10**12
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(PNG * 100)
        return response

    url = await serve(answer)
    async with fetching(attrs.evolve(LOOPBACK, max_bytes=1024 * 1024)) as fetcher:
        assert await reason_of(fetcher, url) == "is larger than 1 MiB"
        assert await reason_of(fetcher, url, max_bytes=1000) == "is larger than 1000 bytes"
        assert await reason_of(fetcher, url, max_bytes=2 * 1024 * 1024) == "is larger than 1 MiB"


def in_chunks(count: int, size_bytes: int) -> bytes:
    chunks = [PNG, *[bytes(size_bytes)] * count]
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks)


async def test_a_body_in_tiny_chunks_is_cut_off(serve_raw: Serve) -> None:
    url = await serve_raw(writing(in_chunks(50_000, 1), stall=True))
    async with fetching(LOOPBACK) as fetcher:
        assert await reason_of(fetcher, url) == "is sent in chunks of less than 64 bytes"


@pytest.mark.parametrize(("count", "size_bytes"), [(250, 1), (5_000, 64), (20, 5_000)])
async def test_a_few_tiny_chunks_or_many_small_ones_are_taken(serve_raw: Serve, count: int, size_bytes: int) -> None:
    url = await serve_raw(writing(in_chunks(count, size_bytes) + b"0\r\n\r\n"))
    async with fetching(LOOPBACK) as fetcher:
        data = await fetcher.fetch(str(url), field="$.image_url", kind="image")
    assert len(data) == len(PNG) + count * size_bytes


async def test_a_length_that_is_too_large_is_enough_to_refuse(serve_raw: Serve) -> None:
    url = await serve_raw(writing(OK + b"Content-Length: 1000000000\r\n\r\n", stall=True))
    async with fetching(LOOPBACK) as fetcher:
        assert await reason_of(fetcher, url) == "is larger than 25 MiB"


async def test_the_bound_itself_still_fits(serve: Serve) -> None:
    url = await serve(answering(PNG))
    async with fetching(attrs.evolve(LOOPBACK, max_bytes=len(PNG))) as fetcher:
        assert await fetcher.fetch(str(url), field="$.image_url", kind="image") == PNG
        assert await reason_of(fetcher, url, max_bytes=len(PNG) - 1) == f"is larger than {len(PNG) - 1} bytes"


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate", "identity, gzip", "x"])
async def test_a_compressed_answer_is_refused_and_never_unpacked(serve: Serve, encoding: str) -> None:
    bomb = gzip.compress(PNG + bytes(10 * 1024 * 1024))
    url = await serve(answering(bomb, headers={"Content-Encoding": encoding}))
    async with fetching(LOOPBACK) as fetcher:
        assert await reason_of(fetcher, url) == "is sent with a Content-Encoding, though none was asked for"


async def test_gzip_without_the_header_is_just_no_picture(serve: Serve) -> None:
    url = await serve(answering(gzip.compress(PNG)))
    async with fetching(LOOPBACK) as fetcher:
        assert (await reason_of(fetcher, url)).startswith("is application/gzip, not a picture")


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("image", b"", "is empty"),
        ("image", b"<!DOCTYPE html><p>internal secret", "is text/html, not a picture"),
        ("image", b"\xef\xbb\xbf\n <HTML>", "is text/html, not a picture"),
        ("image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is image/svg+xml, not a picture"),
        ("image", b'{"internal": "secret"}', "is text/plain, not a picture"),
        ("image", b"BM, as they say", "is text/plain, not a picture"),
        ("image", WAV, "is audio/wav, not a picture"),
        ("image", bytes(100), "is of an unknown type, not a picture"),
        ("audio", PNG, "is image/png, not a sound file"),
        ("audio", b"\0\0\0\x18ftypqt  ", "is video/mp4, not a sound file"),
    ],
)
async def test_the_bytes_tell_the_type_whatever_the_server_says(
    serve: Serve, kind: MediaKind, body: bytes, reason: str
) -> None:
    url = await serve(answering(body, content_type="image/png" if kind == "image" else "audio/wav"))
    async with fetching(LOOPBACK) as fetcher:
        found = await reason_of(fetcher, url, kind=kind)
    assert found.startswith(reason)
    assert "secret" not in found


async def test_what_is_no_picture_is_not_downloaded_to_its_end(serve: Serve) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"<html>" + b" " * 100)
        with contextlib.suppress(ConnectionError):
            await asyncio.Event().wait()
        return response

    url = await serve(answer)
    async with fetching(LOOPBACK) as fetcher:
        assert (await reason_of(fetcher, url)).startswith("is text/html")
