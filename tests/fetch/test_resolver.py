"""Names: what they resolve to is checked, and what was checked is connected."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator

import attrs
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer

from aiservices.fetch import Fetcher, Refused
from aiservices.fetch.refusal import Refusal
from aiservices.loops import LoopThread
from aiservices.settings import FetchConfig
from tests.fetch.helpers import (
    LOOPBACK,
    PNG,
    Answer,
    Names,
    Serve,
    answering,
    fetching,
    reason_of,
    redirecting,
    whole_loopback_net,
)


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"],
        ["127.0.0.1"],
        ["::1"],
        ["93.184.216.34", "10.0.0.1"],
        ["2606:4700::1111", "fd00::1"],
        ["fe80::1%2"],
        ["64:ff9b::7f00:1"],
        ["::ffff:10.0.0.1"],
        ["93.184.216.34"] * 20 + ["10.0.0.1"],
        ["not an address"],
    ],
)
async def test_a_name_with_any_private_address_is_refused(addresses: list[str]) -> None:
    async with fetching(names=Names({"inside.test": [addresses]})) as fetcher:
        reason = await reason_of(fetcher, "http://inside.test/a.png", error=Refused)
    assert reason == "resolves to a private address"


async def test_a_name_that_nobody_knows_says_so() -> None:
    async with fetching(names=Names({"empty.test": [[]]})) as fetcher:
        assert await reason_of(fetcher, "http://nowhere.test/") == "has a host that could not be resolved"
        assert await reason_of(fetcher, "http://empty.test/") == "has a host that could not be resolved"


async def test_a_name_in_allowed_hosts_may_be_private(serve: Serve) -> None:
    url = await serve(answering(PNG))
    config = FetchConfig(allow_hosts=(f"minio.test:{url.port}",))
    async with fetching(config, Names({"minio.test": [["127.0.0.1"]], "other.test": [["127.0.0.1"]]})) as fetcher:
        data = await fetcher.fetch(str(url.with_host("minio.test")), field="$.image_url", kind="image")
        assert await reason_of(fetcher, url.with_host("other.test"), error=Refused) == "resolves to a private address"
        assert await reason_of(fetcher, url, error=Refused) == "points to a private address"
    assert data == PNG


@whole_loopback_net
async def test_a_name_is_looked_up_once_and_what_was_checked_is_connected(serve: Serve) -> None:
    reached: list[str] = []

    def naming(server: str) -> Answer:
        async def answer(request: web.Request) -> web.Response:
            reached.append(server)
            return web.Response(body=PNG)

        return answer

    allowed = await serve(naming("allowed"))
    assert allowed.port is not None
    app = web.Application()
    app.router.add_get("/", naming("inside"))
    inside = TestServer(app, host="127.0.0.2", port=allowed.port)
    await inside.start_server()
    names = Names({"rebind.test": [["127.0.0.1"], ["127.0.0.2"]]})
    async with fetching(LOOPBACK, names) as fetcher:
        await fetcher.fetch(str(allowed.with_host("rebind.test")), field="$.image_url", kind="image")
        assert names.asked == ["rebind.test"]
        reason = await reason_of(fetcher, allowed.with_host("rebind.test"), error=Refused)
    await inside.close()
    assert reason == "resolves to a private address"
    assert reached == ["allowed"]


async def test_a_name_that_turns_private_between_two_hops_is_refused(serve: Serve) -> None:
    url = await serve(redirecting("/again"))
    names = Names({"rebind.test": [["127.0.0.1"], ["10.0.0.7"]]})
    async with fetching(LOOPBACK, names) as fetcher:
        reason = await reason_of(fetcher, url.with_host("rebind.test"), error=Refused)
    assert reason == "redirects to a URL that resolves to a private address"
    assert names.asked == ["rebind.test", "rebind.test"]


@whole_loopback_net
async def test_a_name_with_very_many_addresses_does_not_get_them_all_tried(serve: Serve) -> None:
    url = await serve(answering(PNG), host="127.0.0.19")
    names = Names({"many.test": [[f"127.0.0.{last}" for last in range(11, 20)]]})
    async with fetching(FetchConfig(allow_hosts=("127.0.0.0/24",)), names) as fetcher:
        assert await reason_of(fetcher, url.with_host("many.test")) == "could not be connected"
        names.answers["many.test"] = [["127.0.0.11", "127.0.0.19"]]
        assert await fetcher.fetch(str(url.with_host("many.test")), field="$.image_url", kind="image") == PNG


async def test_the_systems_own_resolver_is_guarded_too(serve: Serve) -> None:
    url = (await serve(answering(PNG))).with_host("localhost")
    async with fetching() as fetcher:
        assert await reason_of(fetcher, url, error=Refused) == "points to a private address"
    fetcher = Fetcher(attrs.evolve(LOOPBACK, allow_hosts=(f"localhost:{url.port}",)))
    await fetcher.start()
    try:
        assert await fetcher.fetch(str(url), field="$.image_url", kind="image") == PNG
    finally:
        await fetcher.close()


def dns_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("fetch-dns")}


@pytest.fixture
async def system_fetcher() -> AsyncIterator[Fetcher]:
    """A fetcher that asks the system, in two threads, and is not started; ``localhost`` is allowed."""
    fetcher = Fetcher(attrs.evolve(LOOPBACK, allow_hosts=("localhost",), max_concurrency=2))
    yield fetcher
    await fetcher.close()


@pytest.mark.parametrize("starts_before", [0, 2, None], ids=["started", "starts between", "never starts"])
async def test_other_clients_share_the_fetchers_lookup_and_leave_nothing_behind(
    system_fetcher: Fetcher, starts_before: int | None
) -> None:
    before = dns_threads()
    resolvers: list[AbstractResolver] = []
    for nth in range(6):
        if nth == starts_before:
            await system_fetcher.start()
        resolvers.append(system_fetcher.guarded_resolver())
        assert await resolvers[-1].resolve("localhost", 80)
        await resolvers[-1].close()
    threads = dns_threads() - before
    assert 0 < len(threads) <= 2, "the threads of one pool"
    await system_fetcher.close()
    for thread in threads:
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive()


async def test_closing_one_clients_resolver_leaves_the_lookup_to_the_others(
    serve: Serve, system_fetcher: Fetcher
) -> None:
    url = (await serve(answering(PNG))).with_host("localhost")
    await system_fetcher.start()
    resolver, other = system_fetcher.guarded_resolver(), system_fetcher.guarded_resolver()
    await resolver.close()
    assert await other.resolve("localhost", 80)
    assert await system_fetcher.fetch(str(url), field="$.image_url", kind="image") == PNG


async def test_a_guarded_resolver_works_on_another_loop_at_the_same_time(system_fetcher: Fetcher) -> None:
    async def look_up() -> list[ResolveResult]:
        resolver = system_fetcher.guarded_resolver()
        try:
            return await resolver.resolve("localhost", 80, socket.AF_INET)
        finally:
            await resolver.close()

    other = LoopThread("other")
    try:
        found = await asyncio.gather(look_up(), other.run(look_up()), look_up(), other.run(look_up()))
    finally:
        other.close()
    assert [{one["host"] for one in each} for each in found] == [{"127.0.0.1"}] * 4


async def test_a_guarded_resolver_refuses_what_the_fetcher_refuses() -> None:
    async with fetching(names=Names({"inside.test": [["10.0.0.1"]]})) as fetcher:
        resolver = fetcher.guarded_resolver()
        with pytest.raises(Refusal, match="resolves to a private address"):
            await resolver.resolve("inside.test", 80)
        await resolver.close()


async def test_a_lookup_after_the_fetcher_closed_fails_as_a_lookup(system_fetcher: Fetcher) -> None:
    await system_fetcher.start()
    resolver = system_fetcher.guarded_resolver()
    await system_fetcher.close()
    before = dns_threads()
    for late in (resolver, system_fetcher.guarded_resolver()):
        with pytest.raises(OSError, match="closed"):
            await late.resolve("localhost", 80)
    assert not dns_threads() - before


async def test_a_fetcher_that_starts_again_looks_names_up_again(serve: Serve, system_fetcher: Fetcher) -> None:
    url = str((await serve(answering(PNG))).with_host("localhost"))
    for _ in range(2):
        await system_fetcher.start()
        assert await system_fetcher.guarded_resolver().resolve("localhost", 80)
        assert await system_fetcher.fetch(url, field="$.image_url", kind="image") == PNG
        await system_fetcher.close()
