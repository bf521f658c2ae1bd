"""Servers that break off, stall or are not there, and how each is named."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import attrs
import pytest
from aiohttp.abc import ResolveResult

from aiservices.settings import FetchConfig
from tests.fetch.helpers import (
    LOOPBACK,
    OK,
    PNG,
    Names,
    Serve,
    fetching,
    reason_of,
    writing,
)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((), "closed the connection without an answer"),
        ((b"HTTP/1.1 200",), "closed the connection without an answer"),
        ((OK + b"Content-Length: 1000\r\n\r\n" + PNG,), "broke off before its end"),
        ((OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\n" + PNG,), "broke off before its end"),
        ((b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",), "answered 101"),
        ((b"SSH-2.0-OpenSSH_9.6\r\n\r\n",), "did not answer in proper HTTP"),
        ((OK + b"Content-Length: -1\r\n\r\n" + PNG,), "did not answer in proper HTTP"),
        ((OK + b"X: " + b"a" * 100_000 + b"\r\n\r\n",), "did not answer in proper HTTP"),
        ((OK + b"Content-Length: 0\r\n\r\n",), "is empty"),
    ],
)
async def test_a_broken_answer_is_named(serve_raw: Serve, parts: tuple[bytes, ...], reason: str) -> None:
    url = await serve_raw(writing(*parts))
    async with fetching(LOOPBACK) as fetcher:
        assert await reason_of(fetcher, url) == reason


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (b"HTTP/1.1 200",),
        (OK,),
        (OK + b"Content-Length: 1000\r\n\r\n",),
        (OK + b"Content-Length: 1000\r\n\r\n", PNG),
    ],
)
async def test_a_stalled_server_ends_in_time(serve_raw: Serve, parts: tuple[bytes, ...]) -> None:
    url = await serve_raw(writing(*parts, stall=True))
    async with fetching(attrs.evolve(LOOPBACK, timeout_s=0.05)) as fetcher:
        assert await reason_of(fetcher, url) == "took longer than 0.05 s"


async def test_a_trickle_does_not_stretch_the_time(serve_raw: Serve) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: 1000000\r\n\r\n" + PNG)
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"\0")
                await writer.drain()
                await asyncio.sleep(0.005)

    url = await serve_raw(trickle)
    async with fetching(attrs.evolve(LOOPBACK, timeout_s=0.06)) as fetcher:
        assert await reason_of(fetcher, url) == "took longer than 0.06 s"


async def test_a_lookup_that_stalls_ends_in_time() -> None:
    class Silent(Names):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            await asyncio.Event().wait()
            return []

    async with fetching(FetchConfig(timeout_s=0.05), Silent({})) as fetcher:
        assert await reason_of(fetcher, "http://silent.test/") == "took longer than 0.05 s"


async def test_a_port_where_no_one_listens_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with fetching(LOOPBACK) as fetcher:
            reason = await reason_of(fetcher, f"http://127.0.0.1:{unused.getsockname()[1]}/")
    assert reason == "could not be connected"
