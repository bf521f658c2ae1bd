"""The guarded download, over loopback servers and a resolver that answers what a test tells it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import ipaddress
import json
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import quote_from_bytes

import attrs
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from yarl import URL

from aiservices.errors import ConfigError, FetchError
from aiservices.fetch import AllowList, Fetcher, Refused, host_of, is_public, sniff
from aiservices.handler import MediaKind
from aiservices.settings import FetchConfig

PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)
WAV = b"RIFF\x24\0\0\0WAVEfmt " + bytes(200)
SECRET = "X-Amz-Signature=5ec2e7"

Answer: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve: TypeAlias = Callable[..., Awaitable[URL]]
RawAnswer: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Names(AbstractResolver):
    """Answers from a table: per name a list of answers, given one after the other, the last one for ever."""

    def __init__(self, answers: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self.answers = {name: list(found) for name, found in answers.items()}
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        left = self.answers.get(host)
        if left is None:
            raise OSError("name not known")
        found = left.pop(0) if len(left) > 1 else left[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found
        ]

    async def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def fetching(
    config: FetchConfig | None = None, names: Names | None = None, **options: Any
) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(config or FetchConfig(), resolver=names or Names({}), **options)
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()


whole_loopback_net = pytest.mark.skipif(
    sys.platform == "darwin", reason="127.0.0.2 and up are missing: sudo ifconfig lo0 alias 127.0.0.2 (and .19)"
)

LOOPBACK = FetchConfig(allow_hosts=("127.0.0.1",), timeout_s=5)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server on a loopback address, all of whose paths give one answer; return its URL."""
    servers: list[TestServer] = []

    async def start(answer: Answer, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> URL:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        server = TestServer(app, host=host, scheme="https" if tls else "http")
        await server.start_server(ssl=tls)
        servers.append(server)
        return server.make_url("/")

    yield start
    for server in servers:
        await server.close()


@pytest.fixture
async def serve_raw() -> AsyncIterator[Serve]:
    """Start a server that speaks whatever the given function writes; return its URL."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(answer: RawAnswer) -> URL:
            async def answer_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                try:
                    await answer(reader, writer)
                finally:
                    writer.close()

            server = await stack.enter_async_context(await asyncio.start_server(answer_and_close, "127.0.0.1", 0))
            return URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")

        yield start


def answering(body: bytes, **options: Any) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body, **options)

    return answer


def redirecting(location: str, status: int = 302) -> Answer:
    return answering(b"", status=status, headers={"Location": location})


async def reason_of(
    fetcher: Fetcher,
    url: object,
    *,
    kind: MediaKind = "image",
    max_bytes: int | None = None,
    error: type[FetchError] = FetchError,
) -> str:
    with pytest.raises(FetchError) as caught:
        await fetcher.fetch(str(url), field="$.image_url", kind=kind, max_bytes=max_bytes)
    assert type(caught.value) is error, caught.value
    assert caught.value.field == "$.image_url"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "what the client said must not travel along"
    assert "\n" not in caught.value.reason
    return caught.value.reason


# Addresses


PUBLIC = {
    "IPv4": ("93.184.216.34", "8.8.8.8", "1.1.1.1", "223.255.255.254"),
    "IPv6": ("2606:4700::1111", "2a00:1450:4001::200e", "2001:200::1", "2001:4860:4860::8888"),
    "embedded": ("::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
}
NOT_PUBLIC = {
    "this host": ("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "::", "::1"),
    "private": ("10.0.0.1", "172.16.0.1", "172.31.255.1", "192.168.1.1", "fc00::1", "fd00:ec2::254", "fec0::1"),
    "link": ("169.254.169.254", "fe80::1", "fe80::1%eth0"),
    "carrier": ("100.64.0.1", "100.100.100.200"),
    "protocol": ("192.0.0.1", "192.0.0.192", "192.88.99.1", "168.63.129.16", "2001:20::1", "100::1", "5f00::1"),
    "documentation": ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"),
    "benchmark": ("198.18.0.1",),
    "multicast": ("224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1"),
    "reserved": ("240.0.0.1", "255.255.255.255", "4000::1"),
    "mapped": ("::ffff:127.0.0.1", "::ffff:100.64.0.1", "::ffff:224.0.0.1"),
    "compatible": ("::127.0.0.1", "::8.8.8.8"),
    "NAT64": ("64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8"),
    "6to4": ("2002:7f00:1::1", "2002:808:808::1"),
    "Teredo": ("2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    "zone": ("2606:4700::1111%1", "::ffff:8.8.8.8%1", "64:ff9b::8.8.8.8%1"),
}


@pytest.mark.parametrize("address", [address for group in PUBLIC.values() for address in group])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", [address for group in NOT_PUBLIC.values() for address in group])
def test_every_other_address_is_not(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_as_private_as_the_plain_one(address: ipaddress.IPv4Address) -> None:
    assert is_public(ipaddress.ip_address(f"::ffff:{address}")) == is_public(address)
    assert is_public(ipaddress.ip_address(f"64:ff9b::{address}")) == is_public(address)
    assert not is_public(ipaddress.IPv6Address((0x2002 << 112) | int(address) << 80 | 1))


# URLs

HOSTILE_URLS = {
    # other spellings of 127.0.0.1 and its like
    "http://127.0.0.1/": "points to a private address",
    "http://127.0.0.1.": "points to a private address",
    "http://127.0.0.1:80/": "points to a private address",
    "http://\uff11\uff12\uff17.0.0.1/": "points to a private address",
    "http://127\u30020\u30020\u30021/": "points to a private address",
    "http://\u2460\u2461\u2466.0.0.1/": "points to a private address",
    "http://0.0.0.0/": "points to a private address",
    "http://169.254.169.254/latest/meta-data/": "points to a private address",
    "http://[::1]/": "points to a private address",
    "http://[::]/": "points to a private address",
    "http://[::ffff:127.0.0.1]/": "points to a private address",
    "http://[::ffff:7f00:1]/": "points to a private address",
    "http://[0:0:0:0:0:ffff:a9fe:a9fe]/": "points to a private address",
    "http://[64:ff9b::7f00:1]/": "points to a private address",
    "http://[2002:7f00:1::]/": "points to a private address",
    "http://[fe80::1]/": "points to a private address",
    "http://localhost/": "points to a private address",
    "http://LOCALHOST:8000/": "points to a private address",
    "http://a.localhost./": "points to a private address",
    "http://0x7f.1/": "neither a name nor a plain IP",
    "http://0x7f000001/": "neither a name nor a plain IP",
    "http://0X7F.0.0.1/": "neither a name nor a plain IP",
    "http://2130706433/": "neither a name nor a plain IP",
    "http://017700000001/": "neither a name nor a plain IP",
    "http://0177.0.0.1/": "neither a name nor a plain IP",
    "http://127.0.0.01/": "neither a name nor a plain IP",
    "http://127.1/": "neither a name nor a plain IP",
    "http://127.0.1/": "neither a name nor a plain IP",
    "http://0/": "neither a name nor a plain IP",
    "http://0x/": "neither a name nor a plain IP",
    "http://1.2.3.4.5/": "neither a name nor a plain IP",
    "http://256.1.1.1/": "neither a name nor a plain IP",
    "http://example.0x1/": "neither a name nor a plain IP",
    "http://[::1.2.3]/": "neither a name nor a plain IP",
    "http://[fe80::1%25eth0]/": "no valid host",
    "http://[fe80::1%eth0]/": "no valid host",
    "http://[v1.a]/": "no valid host",
    # hosts that two programs read differently
    "http://user@example.com/": "user name",
    "http://user:password@example.com/": "user name",
    "http://@example.com/": "user name",
    "http://example.com@127.0.0.1/": "user name",
    "http://127.0.0.1\\@example.com/": "backslash",
    "http://127.0.0.1:80\\@example.com/": "backslash",
    "http:\\\\127.0.0.1/": "backslash",
    "http://127.0.0.%31/": "no valid host",
    "http://exa%6dple.com/": "no valid host",
    "http://example.com /": "space",
    " http://example.com/": "space",
    "http://example.com/\r\nX-Injected: 1": "control character",
    "http://exam\tple.com/": "control character",
    "http://example.com/\0": "control character",
    "http://[::1/": "no valid host",
    "http://[::1]x/": "no valid host",
    "http://a..b/": "neither a name nor a plain IP",
    "http://.a/": "neither a name nor a plain IP",
    "http://-a.example/": "neither a name nor a plain IP",
    "http://a,b.example/": "neither a name nor a plain IP",
    "http://" + "a" * 64 + ".example/": "neither a name nor a plain IP",
    "http://" + "a." * 130 + "example/": "neither a name nor a plain IP",
    "http:///etc/passwd": "no valid host",
    "http:example.com": "no valid host",
    "http://": "no valid host",
    "http://:80/": "no valid host",
    "http://\ud800.example/": "not a valid URL",
    # ports
    "http://example.com:0/": "no valid host and port",
    "http://example.com:65536/": "not a valid URL",
    "http://example.com:+80/": "no valid host",
    "http://example.com:\uff18\uff10/": "no valid host",
    "http://example.com:/": "no valid host",
    # schemes
    "file:///etc/passwd": "scheme 'file'",
    "ftp://example.com/a.png": "scheme 'ftp'",
    "gopher://example.com/": "scheme 'gopher'",
    "javascript:alert(1)": "scheme 'javascript'",
    "data:image/png;base64,AAAA": "scheme 'data'",
    "//example.com/a.png": "not a URL with a scheme",
    "/a.png": "not a URL with a scheme",
    "": "not a URL with a scheme",
    "http://example.com/" + "a" * 9000: "longer than 8192 characters",
}


@pytest.mark.parametrize(("url", "reason"), HOSTILE_URLS.items(), ids=range(len(HOSTILE_URLS)))
async def test_a_hostile_url_is_refused_before_the_network_is_asked(url: str, reason: str) -> None:
    names = Names({})
    async with fetching(names=names) as fetcher:
        with pytest.raises(Refused, match=reason):
            fetcher.check_url(url, field="$.image_url")
        if not url.startswith("data:"):
            assert reason in await reason_of(fetcher, url, error=Refused)
    assert names.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "HTTPS://Example.COM/a.png?b=c#d",
        "http://example.com:8080/",
        "http://example.com./",
        "https://xn--zca.de/",
        "https://stra\u00dfe.de/gr\u00f6\u00dfe.png",
        "http://a_b.example/",
        "http://8.8.8.8/",
        "http://[2606:4700::1111]:443/",
        "http://127.0.0.1.example.com/",
        "http://example.com?@b",
    ],
)
async def test_an_ordinary_url_passes(url: str) -> None:
    async with fetching() as fetcher:
        fetcher.check_url(url, field="$.image_url")


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://", "data:", "http://["]))
def test_whatever_the_text_is_the_answer_is_yes_or_refused(text: str, prefix: str) -> None:
    fetcher = Fetcher(FetchConfig())
    with contextlib.suppress(Refused):
        fetcher.check_url(prefix + text, field="$.image_url")
    assert isinstance(host_of(prefix + text), str)


def test_only_the_host_of_a_url_is_logged() -> None:
    assert host_of(f"https://Bucket.example.com/private.png?{SECRET}") == "bucket.example.com"
    assert host_of("data:image/png;base64,AAAA") == "data:"
    assert host_of(f"http://user:{SECRET}@example.com/") == "?"
    assert host_of(f"http://a,{SECRET}/") == "?"


# Allowed hosts


@pytest.mark.parametrize(
    ("entry", "host", "port", "covered"),
    [
        ("minio", "minio", 9000, True),
        ("MinIO:9000", "minio", 9000, True),
        ("minio:9000", "minio", 9001, False),
        ("minio", "minio.example", 9000, False),
        ("minio.internal", "minio.internal.", 80, True),
        ("127.0.0.1:9000", "minio", 9000, False),
    ],
)
def test_a_name_is_allowed_as_it_is_written(entry: str, host: str, port: int, covered: bool) -> None:
    assert AllowList.parse([entry]).covers_host(host, port) is covered


@pytest.mark.parametrize(
    ("entry", "address", "port", "covered"),
    [
        ("127.0.0.1:9000", "127.0.0.1", 9000, True),
        ("127.0.0.1:9000", "::ffff:127.0.0.1", 9000, True),
        ("127.0.0.1:9000", "127.0.0.1", 9001, False),
        ("127.0.0.1", "127.0.0.1", 9001, True),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("10.0.0.0/8:9000", "10.1.2.3", 80, False),
        ("10.0.0.0/8", "64:ff9b::10.1.2.3", 80, False),
        ("::1", "::1", 80, True),
        ("[::1]:9000", "::1", 9000, True),
        ("[::1]:9000", "::1", 9001, False),
        ("fd00::/8", "fd12::1", 80, True),
        ("fd00::/8", "10.0.0.1", 80, False),
    ],
)
def test_an_address_is_allowed_by_its_network(entry: str, address: str, port: int, covered: bool) -> None:
    assert AllowList.parse([entry]).covers_address(ipaddress.ip_address(address), port) is covered


@pytest.mark.parametrize("entry", ["", "http://minio", "minio:port", "10.0.0.1/8", "*.internal", "0x7f.1", "a b"])
def test_a_wrong_entry_of_allowed_hosts_is_named(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"allow_hosts"):
        Fetcher(FetchConfig(allow_hosts=("minio", entry)))


# Names


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


async def test_no_proxy_of_the_environment_is_used(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    url = await serve(answering(PNG))
    async with fetching(LOOPBACK) as fetcher:
        assert await fetcher.fetch(str(url), field="$.image_url", kind="image") == PNG


# Redirects


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


# TLS


@attrs.frozen
class Certificate:
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command is missing: apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    _make_certificate(openssl, cert, key)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(cert, key)
    return Certificate(server, ssl.create_default_context(cafile=cert))


def _make_certificate(openssl: str, cert: Path, key: Path) -> None:
    make = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=cdn.test", "-addext", "subjectAltName=DNS:cdn.test"]
    files = ["-out", str(cert), "-keyout", str(key)]
    subprocess.run([openssl, *make, *names, *files], check=True, capture_output=True)


TLS_NAMES = {"cdn.test": [["127.0.0.1"]], "other.test": [["127.0.0.1"]]}


async def test_a_certificate_is_checked_against_the_name_though_the_address_is_pinned(
    serve: Serve, certificate: Certificate
) -> None:
    url = await serve(answering(PNG), tls=certificate.server)
    async with fetching(LOOPBACK, Names(TLS_NAMES), tls=certificate.client) as fetcher:
        assert await fetcher.fetch(str(url.with_host("cdn.test")), field="$.image_url", kind="image") == PNG
        reason = await reason_of(fetcher, url.with_host("other.test"))
    assert reason == "has a TLS certificate that is not trusted"


async def test_a_certificate_of_ones_own_making_is_not_trusted(serve: Serve, certificate: Certificate) -> None:
    url = await serve(answering(PNG), tls=certificate.server)
    async with fetching(LOOPBACK, Names(TLS_NAMES)) as fetcher:
        assert await reason_of(fetcher, url.with_host("cdn.test")) == "has a TLS certificate that is not trusted"


async def test_a_redirect_from_https_to_http_is_refused(serve: Serve, certificate: Certificate) -> None:
    target = await serve(answering(PNG))
    url = await serve(redirecting(str(target)), tls=certificate.server)
    async with fetching(LOOPBACK, Names(TLS_NAMES), tls=certificate.client) as fetcher:
        reason = await reason_of(fetcher, url.with_host("cdn.test"), error=Refused)
    assert reason == "redirects from https to http"


async def test_a_server_that_speaks_no_tls_is_named(serve: Serve) -> None:
    url = await serve(answering(PNG))
    async with fetching(LOOPBACK) as fetcher:
        assert await reason_of(fetcher, url.with_scheme("https")) == "failed in the TLS handshake"


async def test_a_handshake_that_stalls_ends_in_the_connect_time(serve_raw: Serve) -> None:
    url = await serve_raw(until_closed)
    async with fetching(attrs.evolve(LOOPBACK, connect_timeout_s=0.05)) as fetcher:
        assert await reason_of(fetcher, url.with_scheme("https")) == "could not be connected in time"


async def test_a_peer_that_will_not_say_goodbye_in_tls_is_hung_up_on(certificate: Certificate) -> None:
    hung_up = asyncio.Event()
    loop = asyncio.get_running_loop()

    def serve_once(listener: socket.socket) -> None:
        tls = certificate.server.wrap_socket(listener.accept()[0], server_side=True)
        tls.recv(65536)
        tls.sendall(OK + b"Content-Length: 1000000000\r\n\r\n")
        with socket.socket(fileno=tls.detach()) as deaf, contextlib.suppress(ConnectionError):
            deaf.settimeout(5)
            while deaf.recv(65536):
                pass
        loop.call_soon_threadsafe(hung_up.set)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        served = thread.submit(serve_once, listener)
        async with fetching(LOOPBACK, Names(TLS_NAMES), tls=certificate.client) as fetcher:
            url = f"https://cdn.test:{listener.getsockname()[1]}/"
            assert await reason_of(fetcher, url) == "is larger than 25 MiB"
            await asyncio.wait_for(hung_up.wait(), 5)
        served.result()


# Answers


@pytest.mark.parametrize("status", [201, 204, 206, 300, 304, 401, 403, 404, 418, 500, 503])
async def test_any_status_but_200_fails_and_is_named(serve: Serve, status: int) -> None:
    url = await serve(answering(b"" if status in (204, 304) else b"the server's own words", status=status))
    async with fetching(LOOPBACK) as fetcher:
        assert await reason_of(fetcher, url) == f"answered {status}"


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


# Servers that misbehave


async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(65536):
            pass


def writing(*parts: bytes, stall: bool = False) -> RawAnswer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        if stall:
            await until_closed(reader, writer)

    return answer


OK = b"HTTP/1.1 200 OK\r\n"


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


# Bounds of the whole


async def test_no_more_downloads_run_at_once_than_configured(serve: Serve) -> None:
    running = peak = 0
    two_run, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        if running == 2:
            two_run.set()
        await go_on.wait()
        running -= 1
        return web.Response(body=PNG)

    url = str(await serve(answer))
    async with fetching(attrs.evolve(LOOPBACK, max_concurrency=2)) as fetcher:
        downloads = [asyncio.create_task(fetcher.fetch(url, field="$.image_url", kind="image")) for _ in range(6)]
        await two_run.wait()
        await asyncio.sleep(0.02)  # time for a third one, were there any
        go_on.set()
        assert await asyncio.gather(*downloads) == [PNG] * 6
    assert peak == 2


@pytest.mark.parametrize("parts", [(), (OK + b"Content-Length: 1000\r\n\r\n" + PNG,)])
async def test_a_cancelled_download_closes_its_connection_and_frees_its_slot(
    serve_raw: Serve, parts: tuple[bytes, ...]
) -> None:
    connected, closed = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writing(*parts)(reader, writer)
        connected.set()
        await until_closed(reader, writer)
        closed.set()

    url = await serve_raw(answer)
    async with fetching(attrs.evolve(LOOPBACK, max_concurrency=1)) as fetcher:
        for _ in range(2):
            download = asyncio.create_task(fetcher.fetch(str(url), field="$.image_url", kind="image"))
            await asyncio.wait_for(connected.wait(), 5)
            download.cancel()
            with pytest.raises(asyncio.CancelledError):
                await download
            await asyncio.wait_for(closed.wait(), 5)
            connected.clear()
            closed.clear()


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


async def test_closing_ends_running_downloads_as_failed(serve_raw: Serve) -> None:
    asked = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writing()(reader, writer)
        asked.set()
        await until_closed(reader, writer)

    url = await serve_raw(answer)
    async with fetching(LOOPBACK) as fetcher:
        download = asyncio.create_task(reason_of(fetcher, url))
        await asked.wait()
        await fetcher.close()
        assert await asyncio.wait_for(download, 5)
        assert "not running" in await reason_of(fetcher, url)


async def test_start_and_close_may_be_repeated(serve: Serve) -> None:
    url = await serve(answering(PNG))
    fetcher = Fetcher(LOOPBACK)
    await fetcher.close()
    for _ in range(2):
        await fetcher.start()
        await fetcher.start()
        assert await fetcher.fetch(str(url), field="$.image_url", kind="image") == PNG
        await fetcher.close()
        await fetcher.close()


async def test_neither_log_nor_error_holds_the_secret_of_a_presigned_url(serve: Serve) -> None:
    good = await serve(answering(PNG))
    bad = await serve(answering(b"no", status=403))
    async with fetching(LOOPBACK, Names({"inside.test": [["10.0.0.1"]]})) as fetcher:
        with capture_logs() as logs:
            await fetcher.fetch(f"{good}private.png?{SECRET}", field="$.image_url", kind="image")
            reasons = [await reason_of(fetcher, f"{bad}private.png?{SECRET}")]
            reasons.append(await reason_of(fetcher, f"http://inside.test/private.png?{SECRET}", error=Refused))
    assert [entry["event"] for entry in logs] == ["fetch.done", "fetch.failed", "fetch.refused"]
    assert [entry["host"] for entry in logs] == ["127.0.0.1", "127.0.0.1", "inside.test"]
    written = json.dumps([logs, reasons])
    assert "5ec2e7" not in written
    assert "private.png" not in written
    assert "10.0.0.1" not in written


# data: URLs


def data_url(data: bytes, form: Literal["base64", "percent"], media_type: str = "image/png") -> str:
    if form == "base64":
        return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return f"data:{media_type},{quote_from_bytes(data)}"


@pytest.mark.parametrize(
    "url",
    [
        data_url(PNG, "base64"),
        data_url(PNG, "percent"),
        data_url(PNG, "base64", "text/html;charset=utf-8"),
        "DATA:;BASE64," + base64.b64encode(PNG).decode(),
        "data:;base64," + base64.b64encode(PNG).decode().replace("=", "%3D").replace("A", "%41"),
        "data:," + "".join(f"%{byte:02x}" for byte in PNG),
    ],
)
async def test_a_data_url_is_decoded(url: str) -> None:
    async with fetching() as fetcher:
        assert await fetcher.fetch(url, field="$.image_url", kind="image") == PNG


@given(st.binary(max_size=300), st.sampled_from(["base64", "percent"]))
def test_a_data_url_gives_the_bytes_that_went_in(data: bytes, form: Literal["base64", "percent"]) -> None:
    async def check() -> None:
        fetcher = Fetcher(FetchConfig())
        url = data_url(PNG + data, form)
        assert await fetcher.fetch(url, field="$.image_url", kind="image") == PNG + data

    asyncio.run(check())


@pytest.mark.parametrize("form", ["base64", "percent"])
async def test_a_large_data_url_is_decoded_off_the_loop(form: Literal["base64", "percent"]) -> None:
    data = PNG + bytes(range(256)) * 1200 + b"%" * 70_000
    with ThreadPoolExecutor(1) as pool:
        async with fetching(pool=pool) as fetcher:
            assert await fetcher.fetch(data_url(data, form), field="$.image_url", kind="image") == data
        assert pool._threads, "the given pool had to do it"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:", "without a comma"),
        ("data:image/png;base64", "without a comma"),
        ("data:" + "a" * 300 + ",AAAA", "without a comma"),
        ("data:,", "is empty"),
        ("data:;base64,", "is empty"),
        ("data:;base64,AAA", "not valid base64"),
        ("data:;base64,AAAAA", "not valid base64"),
        ("data:;base64,AA=A", "not valid base64"),
        ("data:;base64,====", "not valid base64"),
        ("data:;base64,AA==AAAA", "not valid base64"),
        ("data:;base64,AA-_", "not valid base64"),
        ("data:;base64,AAAA-_-_", "not valid base64"),
        ("data:;base64,AA%20A", "not valid base64"),
        ("data:;base64,AAAA%0A%0A%0A%0A", "not valid base64"),
        ("data:;base64,AAAA AAAA", "characters that a URL may not hold"),
        ("data:;base64,AAAA\n", "characters that a URL may not hold"),
        ("data:;base64,AAAÄ", "characters that a URL may not hold"),
        ("data:;base64,AAA\ud800", "characters that a URL may not hold"),
        ("data:;base64,AAA#", "characters that a URL may not hold"),
        ("data:,%", "characters that a URL may not hold"),
        ("data:,%4", "characters that a URL may not hold"),
        ("data:,%zz", "characters that a URL may not hold"),
        ("data:,a b", "characters that a URL may not hold"),
        ("data:,<svg>", "characters that a URL may not hold"),
        ("data:,hello", "is text/plain, not a picture"),
        (data_url(WAV, "base64"), "is audio/wav, not a picture"),
        (" data:,a", "a space"),
    ],
)
async def test_a_wrong_data_url_is_named(url: str, reason: str) -> None:
    async with fetching() as fetcher:
        assert reason in await reason_of(fetcher, url, error=Refused if url[0] == " " else FetchError)


@pytest.mark.parametrize("form", ["base64", "percent"])
@pytest.mark.parametrize("surplus", [1, 2, 3, 10_000, 300_000])
async def test_a_data_url_that_is_too_large_is_refused(form: Literal["base64", "percent"], surplus: int) -> None:
    config = FetchConfig(max_bytes=len(PNG))
    async with fetching(config) as fetcher:
        assert await fetcher.fetch(data_url(PNG, form), field="$.image_url", kind="image") == PNG
        reason = await reason_of(fetcher, data_url(PNG + bytes(surplus), form))
    assert reason == f"is larger than {len(PNG)} bytes"


@pytest.mark.parametrize("url", ["data:," + "%" * 1000, "data:;base64," + "-" * 300, "data:;base64," + "%" * 1000])
async def test_the_size_of_a_data_url_is_bounded_before_it_is_decoded(url: str) -> None:
    async with fetching(FetchConfig(max_bytes=len(PNG))) as fetcher:
        assert await reason_of(fetcher, url) == f"is larger than {len(PNG)} bytes"


async def test_base64_padding_may_not_hide_in_the_middle_of_a_long_text() -> None:
    piece = base64.b64encode(PNG[:1] + bytes(49_150)).decode()
    assert len(piece) == 65_536
    text = piece[:-4] + "AA==" + piece
    async with fetching() as fetcher:
        assert "not valid base64" in await reason_of(fetcher, "data:;base64," + text)


# Types


def ftyp(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + bytes(12)


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"BM" + bytes(12) + b"\x28\0\0\0", "image/bmp"),
        (b"BM" + bytes(12) + b"\x29\0\0\0", ""),
        (b"II*\0", "image/tiff"),
        (b"MM\0*", "image/tiff"),
        (ftyp(b"avif"), "image/avif"),
        (ftyp(b"heic"), "image/heic"),
        (ftyp(b"mif1"), "image/heic"),
        (ftyp(b"M4A "), "audio/mp4"),
        (ftyp(b"isom"), "audio/mp4"),
        (ftyp(b"qt  "), "video/mp4"),
        (WAV, "audio/wav"),
        (b"RF64\xff\xff\xff\xffWAVE", "audio/wav"),
        (b"RIFF\0\0\0\0AVI ", "video/avi"),
        (b"RIFF\0\0\0\0", ""),
        (b"FORM\0\0\0\0AIFF", "audio/aiff"),
        (b"fLaC\0\0\0\x22", "audio/flac"),
        (b"OggS\0\x02", "audio/ogg"),
        (b"ID3\x04\0", "audio/mpeg"),
        (b"\xff\xfb\x90\x00", "audio/mpeg"),
        (b"\xff\xf3\x40\xc4", "audio/mpeg"),
        (b"\xff\xfb\xf0\x00", ""),
        (b"\xff\xfb\x9c\x00", ""),
        (b"\xff\xeb\x90\x00", ""),
        (b"\xff\xf1\x50\x80", "audio/aac"),
        (b"\x1aE\xdf\xa3", "audio/webm"),
        ("\ufeff<html>".encode("utf-16-le"), ""),
        (b"%PDF-1.7", "application/pdf"),
        (b"PK\x03\x04", "application/zip"),
        (b"plain\r\n", "text/plain"),
        (b"\xff", ""),
        (b"", ""),
    ],
)
def test_the_first_bytes_tell_the_type(data: bytes, media_type: str) -> None:
    assert sniff(data) == media_type


# POST


async def test_a_post_returns_the_status_and_passes_headers_and_body(serve: Serve) -> None:
    seen: list[tuple[str, str, str, bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        seen.append((request.method, request.headers["Content-Type"], request.headers["X-One"], body))
        return web.Response(status=418)

    url = await serve(answer)
    async with fetching(LOOPBACK) as fetcher:
        status = await fetcher.post_json(str(url), b'{"id":"1"}', headers={"X-One": "1"}, timeout_s=2)
    assert status == 418
    assert seen == [("POST", "application/json", "1", b'{"id":"1"}')]


async def test_a_large_post_arrives_whole(serve: Serve) -> None:
    seen: list[int] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(len(b"".join([chunk async for chunk in request.content.iter_any()])))
        return web.Response()

    app_url = await serve(answer)
    async with fetching(LOOPBACK) as fetcher:
        assert await fetcher.post_json(str(app_url), b"1" * 3_000_000, headers={}, timeout_s=5) == 200
    assert seen == [3_000_000]


async def test_a_post_follows_no_redirect(serve: Serve) -> None:
    url = await serve(redirecting("http://127.0.0.1:1/", 307))
    async with fetching(LOOPBACK) as fetcher:
        assert await fetcher.post_json(str(url), b"{}", headers={}, timeout_s=2) == 307


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "http://inside.test/", "ftp://example.com/", "data:,a"])
async def test_a_post_passes_the_same_guard(url: str) -> None:
    async with fetching(names=Names({"inside.test": [["10.0.0.1"]]})) as fetcher:
        with pytest.raises(Refused) as caught:
            await fetcher.post_json(url, b"{}", headers={}, timeout_s=2)
    assert caught.value.field == "$.webhook"
    assert caught.value.__context__ is None


async def test_a_post_that_stalls_ends_in_its_own_time(serve_raw: Serve) -> None:
    url = await serve_raw(writing(stall=True))
    async with fetching(LOOPBACK) as fetcher:
        with pytest.raises(FetchError, match=r"took longer than 0\.05 s"):
            await fetcher.post_json(str(url), b"{}", headers={}, timeout_s=0.05)


async def test_a_receiver_that_talks_for_ever_is_not_listened_to(serve_raw: Serve) -> None:
    url = await serve_raw(writing(OK + b"Content-Length: 1000000\r\n\r\n", stall=True))
    async with fetching(LOOPBACK) as fetcher:
        assert await asyncio.wait_for(fetcher.post_json(str(url), b"{}", headers={}, timeout_s=5), 5) == 200
