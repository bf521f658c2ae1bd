"""Where sockets are made: no client for hosts that callers name reaches a private address, however it is spelled."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from yarl import URL

from aiservices.errors import FetchError
from aiservices.fetch import Fetcher, Refused, fetcher
from aiservices.fetch.addresses import AllowList
from aiservices.fetch.client import RECEIVE_BYTES, SocketFactory, guarded_connector
from aiservices.fetch.refusal import Refusal
from aiservices.fetch.url import Target
from aiservices.settings import FetchConfig
from tests.fetch.helpers import PNG, Names, Serve, answering, fetching, reason_of, redirecting
from tools.prove.strangers.corpus import hostile_urls


@contextlib.asynccontextmanager
async def canary() -> AsyncIterator[tuple[int, list[bytes]]]:
    """Listen on every loopback address; count what comes."""
    heard: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(b"")
        heard.append(await reader.read(65536))
        writer.close()

    listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    async with await asyncio.start_server(hear, sock=listener):
        yield listener.getsockname()[1], heard


async def fetch(one: Fetcher, url: str) -> Any:
    return await one.fetch(url, field="$.url", kind="image")


async def post(one: Fetcher, url: str) -> Any:
    return await one.post_json(url, b"{}", headers={}, timeout_s=2, field="$.url")


async def put(one: Fetcher, url: str) -> Any:
    return await one.put(url, b"a", headers={}, timeout_s=2, field="$.url")


CLIENTS = pytest.mark.parametrize("client", [fetch, post, put], ids=["fetch", "webhook", "store"])
Client = Callable[[Fetcher, str], Awaitable[Any]]


@CLIENTS
async def test_no_spelling_of_a_private_address_is_connected(client: Client) -> None:
    async with canary() as (port, heard), fetching() as one:
        for url in hostile_urls(port):
            with pytest.raises(FetchError):
                await client(one, url)
        assert heard == []


@CLIENTS
async def test_the_socket_is_refused_even_where_the_text_was_not(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unchecked(url: str, allowed: AllowList) -> Target:
        found = URL(url)
        return Target(found, found.host or "", found.port or 0)

    monkeypatch.setattr(fetcher, "check_url", unchecked)
    async with canary() as (port, heard), fetching() as one:
        for host in ("127.0.0.1", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::127.0.0.1]"):
            with pytest.raises(FetchError, match="points to a private address"):
                await client(one, f"http://{host}:{port}/")
        assert heard == []


@CLIENTS
@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
async def test_no_redirect_leads_to_a_private_address(serve: Serve, client: Client, status: int) -> None:
    async with canary() as (port, heard):
        for host in ("127.0.0.1", "[::ffff:127.0.0.1]", "0.0.0.0", "[::1]", "localhost"):
            url = str(await serve(redirecting(f"http://{host}:{port}/", status)))
            async with fetching(FetchConfig(allow_hosts=(url[7:-1],))) as one:
                with contextlib.suppress(FetchError):
                    assert await client(one, url) == status
        assert heard == []


async def test_a_client_that_follows_redirects_by_itself_is_stopped_all_the_same(serve: Serve) -> None:
    async with canary() as (port, heard):
        url = await serve(redirecting(f"http://127.0.0.1:{port}/"))
        connector = guarded_connector(Names({}), AllowList.parse([f"127.0.0.1:{url.port}"]))
        async with aiohttp.ClientSession(connector=connector) as session:
            with pytest.raises(Refusal):
                await session.get(url)
        assert heard == []


async def test_an_allowed_name_may_lead_anywhere_and_only_at_its_port(serve: Serve) -> None:
    url = (await serve(answering(PNG))).with_host("inside.test")
    names = Names({"inside.test": [["127.0.0.1"]], "other.test": [["127.0.0.1"]]})
    async with fetching(FetchConfig(allow_hosts=(f"inside.test:{url.port}",)), names=names) as one:
        assert await fetch(one, str(url)) == PNG
        await reason_of(one, url.with_host("other.test"), error=Refused)
        await reason_of(one, url.with_port(1), error=Refused)


@pytest.mark.parametrize("text", ["nonsense", "127.0.0.1", "fe80::1%lo", ""])
def test_an_address_that_is_none_gets_no_socket(text: str) -> None:
    with pytest.raises(Refusal):
        SocketFactory(AllowList.parse([]))((socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, 80)))


@pytest.mark.parametrize("into", [False, True], ids=["recv", "recv_into"])
def test_a_socket_gives_little_at_a_time(into: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = listener.getsockname()
        made = SocketFactory(AllowList.parse(("127.0.0.1",)))((socket.AF_INET, socket.SOCK_STREAM, 0, "", where))
        with made:
            made.connect(where)
            peer, _ = listener.accept()
            with peer:
                peer.sendall(bytes(4 * RECEIVE_BYTES))
                got = made.recv_into(bytearray(3 * RECEIVE_BYTES)) if into else len(made.recv(3 * RECEIVE_BYTES))
    assert 0 < got <= RECEIVE_BYTES
