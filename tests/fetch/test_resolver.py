"""Names: what they resolve to is checked, and what was checked is connected."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator

import attrs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from aiservices.fetch import Fetcher, Refused
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


async def test_a_fetcher_that_starts_again_looks_names_up_again(serve: Serve, system_fetcher: Fetcher) -> None:
    url = str((await serve(answering(PNG))).with_host("localhost"))
    for _ in range(2):
        await system_fetcher.start()
        assert await system_fetcher.fetch(url, field="$.image_url", kind="image") == PNG
        await system_fetcher.close()
