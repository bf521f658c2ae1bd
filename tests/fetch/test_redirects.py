"""Redirects: each hop is a new URL."""

from __future__ import annotations

import attrs
import pytest
from aiohttp import web

from aiservices.fetch import Refused
from tests.fetch.helpers import (
    LOOPBACK,
    PNG,
    Names,
    Serve,
    answering,
    fetching,
    reason_of,
    redirecting,
)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(serve: Serve, status: int) -> None:
    target = await serve(answering(PNG))
    url = await serve(redirecting(str(target), status))
    async with fetching(LOOPBACK) as fetcher:
        assert await fetcher.fetch(str(url), field="$.image_url", kind="image") == PNG


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data/", "points to a private address"),
        ("//10.0.0.1/", "points to a private address"),
        ("http://0x7f.1/", "has a host that is neither a name nor a plain IP address"),
        ("http://[::ffff:127.0.0.1]:1/", "points to a private address"),
        ("http://inside.test/", "resolves to a private address"),
        ("http://user:pw@public.test/", "holds a user name or a password"),
        ("file:///etc/passwd", "has the scheme 'file'; http and https are accepted"),
        ("data:image/png;base64,iVBORw0KGgo=", "has the scheme 'data'; http and https are accepted"),
        ("http://public.test/a b", "holds a space, a control character or a backslash"),
        ("http://[::1", "is not valid"),
    ],
)
async def test_a_redirect_is_checked_as_a_new_url(serve: Serve, location: str, reason: str) -> None:
    url = await serve(redirecting(location))
    config = attrs.evolve(LOOPBACK, allow_hosts=(f"127.0.0.1:{url.port}",))
    async with fetching(config, Names({"inside.test": [["10.0.0.1"]]})) as fetcher:
        assert await reason_of(fetcher, url, error=Refused) == f"redirects to a URL that {reason}"


async def test_a_redirect_loop_ends_after_the_configured_hops(serve: Serve) -> None:
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=302, headers={"Location": "/"})

    url = await serve(answer)
    async with fetching(attrs.evolve(LOOPBACK, max_redirects=2)) as fetcher:
        assert await reason_of(fetcher, url) == "redirects more than 2 times"
    assert asked == 3


async def test_a_redirect_needs_a_location(serve: Serve) -> None:
    url = await serve(answering(PNG, status=302))
    async with fetching(LOOPBACK) as fetcher:
        assert await reason_of(fetcher, url) == "answered 302 without a Location"


async def test_what_goes_wrong_behind_a_redirect_says_that_it_was_there(serve: Serve) -> None:
    target = await serve(answering(b"no", status=404))
    url = await serve(redirecting(str(target)))
    async with fetching(LOOPBACK) as fetcher:
        assert await reason_of(fetcher, url) == "redirects to a URL that answered 404"
