"""A store that lies: it gets no token to where it points, no endless loop, no memory, and one clear error."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import attrs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from aiservices.errors import ServiceError
from aiservices.settings import S3Config
from aiservices.storage.s3 import remote, session
from aiservices.storage.s3.plan import plan_target
from aiservices.storage.s3.remote import RemoteObject
from tests.storage.conftest import KEYS, make_store
from tests.storage.s3.samples import URI, nothing_loads

pytest.importorskip("aioboto3", reason="pip install aioboto3 (the s3 extra)")

pytestmark = [pytest.mark.s3, pytest.mark.filterwarnings("ignore:.*utcnow.*:DeprecationWarning")]

TOKEN = "the-token-of-the-session"
ETAG = "d41d8cd98f00b204e9800998ecf8427e"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Lie = Callable[[Answer], Awaitable[str]]


@pytest.fixture
async def lie() -> AsyncIterator[Lie]:
    """Start a store that answers everything in one way; return its URL."""
    servers: list[TestServer] = []

    async def start(answer: Answer) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        servers.append(TestServer(app))
        await servers[-1].start_server()
        return str(servers[-1].make_url("")).rstrip("/")

    yield start
    for server in servers:
        await server.close()


def keys(url: str) -> S3Config:
    return attrs.evolve(KEYS, endpoint_url=url, session_token=TOKEN, attempts=2)


def entry(key: str = "model.safetensors", size: object = 0, etag: str = ETAG) -> str:
    return f"<Contents><Key>org/name/{key}</Key><Size>{size}</Size><ETag>&quot;{etag}&quot;</ETag></Contents>"


def listing(*contents: str, more: str = "<IsTruncated>false</IsTruncated>") -> str:
    return f'<?xml version="1.0"?><ListBucketResult>{more}{"".join(contents)}</ListBucketResult>'


def listed(text: str) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="application/xml")

    return answer


async def error_of(url: str, folder: Path) -> str:
    with pytest.raises(ServiceError) as caught:
        async with asyncio.timeout(20):
            await make_store(folder, keys(url)).resolve(URI)
    assert nothing_loads(folder)
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("of", ["listing", "object"])
async def test_a_redirect_is_not_followed(lie: Lie, tmp_path: Path, status: int, of: str) -> None:
    heard: list[str] = []

    async def hear(request: web.Request) -> web.Response:
        heard.append(f"{request.headers}")
        return web.Response()

    elsewhere = await lie(hear)

    async def answer(request: web.Request) -> web.Response:
        if of == "object" and "list-type" in request.query:
            return web.Response(text=listing(entry(size=9)), content_type="application/xml")
        return web.Response(status=status, headers={"Location": f"{elsewhere}/a"})

    assert f"({status})" in await error_of(await lie(answer), tmp_path)
    assert heard == []


MORE = "<IsTruncated>true</IsTruncated>"
TOKEN_TO_NEXT = MORE + "<NextContinuationToken>a</NextContinuationToken>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (listing(more=TOKEN_TO_NEXT), "its listing did not end in 5 pages"),
        (listing(entry(), more=TOKEN_TO_NEXT), "its listing did not end in 5 pages"),
        (listing(more=MORE), r"does not answer as S3 does \(KeyError\)"),
        (listing("<Contents><Key>org/name/a</Key></Contents>"), r"does not answer as S3 does \(KeyError\)"),
        (listing("<Contents><Size>1</Size></Contents>"), r"does not answer as S3 does \(KeyError\)"),
        (listing(entry(size="many")), "does not answer as S3 does"),
        (listing(entry(size="9" * 5000)), "does not answer as S3 does"),
        (listing(entry(size=2**62)), "more than 4 TiB there"),
        (listing(entry(size=-1)), "which was not asked for"),
        (listing(entry(), entry()), "lists a key twice"),
        (listing(entry().replace("org/name/", "org/other/")), "which was not asked for"),
        (listing(entry("../a.bin")), "cannot be a file below"),
        (listing(entry("/etc/a.bin")), "cannot be a file below"),
        (listing(entry("a/../../a.bin")), "cannot be a file below"),
        (listing(entry("x" * 300 + ".bin")), "cannot be a file below"),
        (listing(entry("x/" * 600 + "a.bin")), "cannot be a file below"),
        (listing(entry("SHA256SUMS", 2**30), entry()), "SHA256SUMS has more than"),
        ("<html>", "the store gave no usable answer"),
        ("", "there is nothing below this prefix"),
    ],
)  # fmt: skip
async def test_an_odd_listing_is_one_clear_error(
    lie: Lie, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    monkeypatch.setattr(remote, "MAX_PAGES", 5)
    assert re.search(reason, await error_of(await lie(listed(text)), tmp_path))


@pytest.mark.parametrize("of", ["listing", "manifest"])
async def test_an_endless_answer_is_read_up_to_a_bound(lie: Lie, tmp_path: Path, of: str) -> None:
    sent: list[int] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if of == "manifest" and "list-type" in request.query:
            return web.Response(text=listing(entry("SHA256SUMS", 70), entry()), content_type="application/xml")
        response = web.StreamResponse()
        await response.prepare(request)
        sent.append(0)
        while True:
            await response.write(b" " * 2**20)
            sent[-1] += 1

    assert f"more than {session.MAX_ANSWER_BYTES} bytes" in await error_of(await lie(answer), tmp_path)
    assert 0 < max(sent) < 64, "MiB, some of them in the sockets' buffers"


@pytest.mark.parametrize("part_bytes", [0, 1, 1000])
def test_tiny_parts_make_no_pieces(part_bytes: int) -> None:
    target = plan_target(RemoteObject("a", 2**40, f"{ETAG}-{'9' * 4}"), 2**24, part_bytes)
    assert target.piece_bytes == 2**24


def test_a_number_of_parts_without_an_end_is_none() -> None:
    assert plan_target(RemoteObject("a", 9, f"{ETAG}-{'9' * 5000}"), 2**24, None).part_bytes is None
