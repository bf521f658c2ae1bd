"""TLS: certificates, handshakes, and peers that will not hang up."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from aiservices.fetch import Refused
from tests.fetch.helpers import (
    LOOPBACK,
    OK,
    PNG,
    Names,
    Serve,
    answering,
    fetching,
    reason_of,
    redirecting,
    until_closed,
)


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
