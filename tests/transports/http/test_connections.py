"""Connections of a real server: bounded in number and in time, and what is no HTTP tells nothing."""

from __future__ import annotations

import gzip
import json
import resource

import aiohttp
import pytest

from aiservices.transports.http.connections import PROBE_CONNECTIONS, raise_file_limit
from tests.transports.http.apps import until
from tests.transports.http.lines import served


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
async def test_a_head_that_does_not_come_ends_its_connection(sent: bytes) -> None:
    async with served(head_timeout_s=0.1) as server:
        line = await server.line()
        await line.send(sent)
        assert await line.rest() == b""


async def test_a_second_head_that_does_not_come_ends_its_connection() -> None:
    async with served(head_timeout_s=0.1) as server:
        line = await server.line()
        assert await line.get("/livez") == 200
        await line.send(b"GET /")
        assert b"HTTP/1.1" not in await line.rest()


async def test_a_connection_may_wait_for_its_next_request_for_a_while_only() -> None:
    async with served(keepalive_s=0.1) as server:
        line = await server.line()
        assert await line.get("/livez") == 200
        await line.rest()


async def test_idle_connections_give_way_the_oldest_first() -> None:
    async with served(max_connections=3) as server:
        lines = [await server.line() for _ in range(3)]
        for line in lines:
            assert await line.get("/livez") == 200
        assert await (await server.line()).get("/v2/upper/health") == 200
        await lines[0].rest()
        assert await lines[1].get("/livez") == 200
        assert b"\naiservices_connections 3.0\n" in (await lines[2].answer("/metrics"))[1]


async def test_where_none_is_idle_probes_are_answered_and_others_told_to_wait() -> None:
    async with served(max_connections=2) as server:
        for _ in range(2):
            busy = await server.line()
            await busy.send(
                b"POST /v2/upper/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
            )
            assert b"100" in await busy.head()
        assert await (await server.line()).get("/livez") == 200
        assert await (await server.line()).get("/v2/upper/health") == 503
        for _ in range(200):
            await server.line()
        pool = server.runner.server
        assert pool is not None
        await until(lambda: len(pool.connections) <= 2 + PROBE_CONNECTIONS)
        assert await (await server.line()).get("/livez") == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Name: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nAccept: text/html\r\n" + b"X: y\r\n" * 300 + b"\r\n",
    ],
    ids=range(9),
)
async def test_what_is_no_http_is_told_so_and_nothing_more(sent: bytes) -> None:
    async with served() as server:
        line = await server.line()
        await line.send(sent)
        head, body = (await line.head()), await line.rest()
        assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
        assert b"Server: aiservices\r\n" in head
        assert json.loads(body) == {"error": "the request is not valid HTTP"}
        assert b"python" not in head.lower() + body.lower()


@pytest.mark.parametrize("path", ["/livez", "/nope", "/v2/upper/run"])
async def test_a_compressed_body_is_never_unpacked(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[object] = []
    monkeypatch.setattr("aiohttp.http_parser.DeflateBuffer", lambda *given, **named: unpacked.append(given))
    bomb = gzip.compress(b" " * 1_000_000)
    async with served() as server, aiohttp.ClientSession() as session:
        headers = {"Content-Encoding": "gzip"}
        async with session.post(f"http://127.0.0.1:{server.port}{path}", data=bomb, headers=headers) as answer:
            assert answer.status in (404, 405, 415)
    assert unpacked == []


def test_the_process_may_open_as_many_files_as_there_are_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(256, 10_000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    assert raise_file_limit(1000) == 1000
    assert limits[-1][0] > 1000
    assert raise_file_limit(100_000) == 10_000 - 64 - 512
