"""Outputs to a bucket, over the real S3 protocol: moto on loopback, and before it a proxy that breaks things."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import aiohttp
import attrs
import msgspec
import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestServer

from aiservices.errors import InvalidInput
from aiservices.handler import BatchHandler, Task, output_file
from aiservices.jobs import Destination, JobRequest
from aiservices.registry import Registry
from aiservices.service import Service
from aiservices.settings import Config, FetchConfig, OutputsConfig, S3Config, ServerConfig, ServiceConfig
from aiservices.transports.runpod import RunPodAdapter
from tests.fakes import TextInput

pytest.importorskip("aioboto3", reason="pip install aioboto3 (the s3 extra)")
moto = pytest.importorskip("moto.server", reason="pip install 'moto[server]' (the test extra)")

pytestmark = [pytest.mark.s3, pytest.mark.filterwarnings("ignore:.*utcnow.*:DeprecationWarning")]

SECRET = "the-secret-of-the-bucket"
BUCKET = "outputs"
LIMIT_S = 20.0


@attrs.frozen
class Sound:
    """A file in base64 beside what describes it."""

    audio: Annotated[str, output_file("The sound.")]
    media_type: str
    text: str


class Speak(BatchHandler[TextInput, Sound]):
    """Answers with ``count`` bytes of sound."""

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[Sound | Exception]:
        return [
            Sound(base64.b64encode(sound(task.item)).decode(), "audio/wav", task.item.text * (task.item.text == "long"))
            for task in tasks
        ]


class Write(BatchHandler[TextInput, TextInput]):
    """Answers with a text of ``count`` characters and holds no file."""

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextInput | Exception]:
        return [TextInput("x" * task.item.count, task.item.count) for task in tasks]


def sound(given: TextInput) -> bytes:
    return (given.text.encode() * given.count)[: given.count]


@pytest.fixture(scope="session")
def store() -> Iterator[str]:
    """An S3 server with one bucket; its URL."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    import boto3

    url = f"http://127.0.0.1:{port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=url, **keys)
    client.create_bucket(Bucket=BUCKET)
    client.close()
    yield url
    server.stop()


def destination(url: str, **changes: str) -> Destination:
    given = {
        "accessId": "key", "accessSecret": SECRET, "bucketName": BUCKET, "endpointUrl": url, "objectPath": "mine/",
    }  # fmt: skip
    return msgspec.convert({**given, **changes}, Destination)


@asynccontextmanager
async def house(kind: type[Any], *, allow: Sequence[str] = ("127.0.0.1",), **outputs: Any) -> AsyncIterator[Registry]:
    service = ServiceConfig(name="fake", handler=f"{__name__}:{kind.__name__}", device="cpu", batch_wait_s=0)
    registry = Registry(
        Config(
            server=ServerConfig(grace_s=0),
            fetch=FetchConfig(allow_hosts=tuple(allow)),
            s3=S3Config(region="us-east-1", access_key_id="key", secret_access_key=SECRET),
            outputs=OutputsConfig(**outputs),
            services={"fake": service},
        )
    )
    await registry.start()
    try:
        yield registry
    finally:
        await registry.close()


@asynccontextmanager
async def running(kind: type[Any], **settings: Any) -> AsyncIterator[Service]:
    async with house(kind, **settings) as registry:
        yield registry.get("fake")


async def ask(service: Service, text: str, count: int, to: Destination | None = None) -> dict[str, Any]:
    job = service.submit(JobRequest(input={"text": text, "count": count}, destination=to))
    await service.wait(job, LIMIT_S)
    shown: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(service.status(job)))
    return shown


async def download(url: str) -> tuple[bytes, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
        return await answer.read(), answer.content_type


async def test_a_large_file_goes_to_the_bucket_and_a_small_one_stays(store: str) -> None:
    async with running(Speak, bucket=BUCKET, prefix="p", endpoint_url=store, max_inline_bytes=1000) as service:
        small = (await ask(service, "abc", 30))["output"]
        assert base64.b64decode(small["audio"]) == b"abc" * 10
        shown = await ask(service, "abc", 3000)
        large = shown["output"]
        assert large.keys() == {"media_type", "text", "audio_url"}
        assert f"/{BUCKET}/p/fake/{shown['id']}/audio.wav?" in large["audio_url"]
        assert "X-Amz-Expires=86400" in large["audio_url"]
        assert await download(large["audio_url"]) == (b"abc" * 1000, "audio/wav")


async def test_a_job_that_brings_a_bucket_gets_every_file_there(store: str) -> None:
    async with running(Speak) as service:
        output = (await ask(service, "abc", 30, destination(store)))["output"]
        assert f"/{BUCKET}/mine/fake/" in output["audio_url"]
        assert await download(output["audio_url"]) == (b"abc" * 10, "audio/wav")


async def test_a_bucket_that_comes_with_a_job_of_runpod_is_used_alike(store: str) -> None:
    given = {"accessId": "key", "accessSecret": SECRET, "bucketName": BUCKET, "endpointUrl": store}
    event = {"id": "a", "input": {"text": "abc", "count": 30}, "s3Config": given}
    async with house(Speak) as registry:
        answer = await RunPodAdapter(registry).handle(event, lambda fraction: None)
        assert await download(answer["audio_url"]) == (b"abc" * 10, "audio/wav")


async def test_any_other_large_answer_goes_as_a_whole(store: str) -> None:
    async with running(Write, bucket=BUCKET, endpoint_url=store, max_inline_bytes=1000) as service:
        assert (await ask(service, "t", 100))["output"] == {"text": "x" * 100, "count": 100}
        output = (await ask(service, "t", 5000))["output"]
        assert output.keys() == {"output_url"}
        content, kind = await download(output["output_url"])
        assert (msgspec.json.decode(content), kind) == ({"text": "x" * 5000, "count": 5000}, "application/json")


async def test_without_a_bucket_everything_stays_in_the_answer() -> None:
    async with running(Speak, max_inline_bytes=10) as service:
        assert len((await ask(service, "abc", 3000))["output"]["audio"]) == 4000


async def test_many_uploads_at_once_keep_their_files_apart(store: str) -> None:
    async with running(Speak, max_concurrency=3) as service:
        shown = await asyncio.gather(*(ask(service, f"{n}", 50, destination(store)) for n in range(12)))
        for n, job in enumerate(shown):
            assert (await download(job["output"]["audio_url"]))[0] == sound(TextInput(f"{n}", 50))


async def test_a_refused_upload_fails_the_job_and_says_why(store: str) -> None:
    async with running(Speak) as service:
        shown = await ask(service, "abc", 30, destination(store, bucketName="no-such-bucket"))
        assert shown["status"] == "FAILED"
        assert "output" not in shown
        reason = "the store answered NoSuchBucket"
        assert shown["error"] == f"the output could not be stored in the bucket 'no-such-bucket': {reason}"


async def test_a_store_that_is_not_there_fails_the_job_and_says_why() -> None:
    async with running(Speak) as service:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))  # nobody else gets this port, and nobody listens
            shown = await ask(service, "abc", 30, destination(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        assert shown["error"] == "the output could not be stored in the bucket 'outputs': the store cannot be reached"


class Proxy:
    """Stands before the store and breaks what it is told to."""

    def __init__(self, store: str) -> None:
        self.fault = ""
        self.uploads = 0
        self.arrived = asyncio.Event()
        self.left = asyncio.Event()
        self._store = store
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._server = TestServer(app)

    async def __aenter__(self) -> Proxy:
        await self._server.start_server()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._server.close()

    @property
    def url(self) -> str:
        return str(self._server.make_url("")).rstrip("/")

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        self.uploads += 1
        self.arrived.set()
        match self.fault:
            case "closes":
                await request.content.readany()
                self._abort(request)
            case "closes once" if self.uploads == 1:
                self._abort(request)
            case "hangs":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.left.set()
            case "speaks otherwise":
                return web.Response(status=500, text="<oops")
            case "forbids":
                code = f"<Error><Code>AccessDenied</Code><Message>{SECRET}</Message></Error>"
                return web.Response(status=403, text=code, content_type="application/xml")
            case "redirects":
                location = {"Location": "http://169.254.169.254/latest/meta-data", "x-amz-bucket-region": "evil"}
                return web.Response(status=307, headers=location)
        body = await request.read()
        if self.fault == "garbles":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if request.headers["Content-MD5"] != base64.b64encode(hashlib.md5(body).digest()).decode():
            # Every S3 checks this header but moto.
            return web.Response(
                status=400, text="<Error><Code>BadDigest</Code></Error>", content_type="application/xml"
            )
        headers = {name: value for name, value in request.headers.items() if name.lower() != "content-length"}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, self._store + request.raw_path, data=body, headers=headers) as answer,
        ):
            return web.Response(status=answer.status, body=await answer.read())

    def _abort(self, request: web.Request) -> None:
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionError


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("closes", "the store closed the connection"),
        ("hangs", "it took longer than 0.5 s"),
        ("speaks otherwise", "the store answered 500"),
        ("forbids", "the store answered AccessDenied"),
        ("garbles", "the store answered BadDigest"),
        ("redirects", "the store answered"),
    ],
)
async def test_a_broken_upload_fails_the_job_and_tells_no_secret(store: str, fault: str, reason: str) -> None:
    async with Proxy(store) as proxy, running(Speak, timeout_s=0.5 if fault == "hangs" else 20) as service:
        proxy.fault = fault
        with structlog.testing.capture_logs() as logs:
            shown = await ask(service, "abc", 3000, destination(proxy.url))
        assert shown["status"] == "FAILED"
        assert shown["error"].startswith(f"the output could not be stored in the bucket 'outputs': {reason}")
        assert SECRET not in f"{shown} {logs}"
        assert proxy.uploads <= 4


async def test_a_connection_that_breaks_once_is_tried_again(store: str) -> None:
    async with Proxy(store) as proxy, running(Speak) as service:
        proxy.fault = "closes once"
        output = (await ask(service, "abc", 30, destination(proxy.url)))["output"]
        assert "audio_url" in output
        assert proxy.uploads == 2


async def test_a_cancelled_job_ends_at_once_and_stops_its_upload(store: str) -> None:
    async with Proxy(store) as proxy, running(Speak) as service:
        proxy.fault = "hangs"
        job = service.submit(JobRequest(input={"text": "a"}, destination=destination(proxy.url)))
        async with asyncio.timeout(LIMIT_S):
            await proxy.arrived.wait()
        service.cancel(job.id)
        assert job.status.value == "CANCELLED"
        async with asyncio.timeout(LIMIT_S):
            await proxy.left.wait()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000", "http://169.254.169.254", "ftp://a.example", "nonsense"])
async def test_a_forbidden_endpoint_is_refused_at_submission(url: str) -> None:
    async with running(Speak, allow=()) as service:
        with pytest.raises(InvalidInput, match=r"^\$\.s3Config\.endpointUrl: "):
            service.submit(JobRequest(input={"text": "a"}, destination=destination(url)))


async def test_a_proxy_of_ours_never_stands_before_a_strangers_store(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with running(Speak) as service:
        assert "audio_url" in (await ask(service, "abc", 30, destination(store)))["output"]


async def test_an_endpoint_whose_name_turns_out_private_is_not_connected(store: str) -> None:
    async with running(Speak, allow=["localhost.:1"]) as service:
        # A name passes at submission; what it resolves to does not.
        to = destination(store.replace("127.0.0.1", "private.test"))
        service._shared.fetcher._resolver = Private()
        shown = await ask(service, "abc", 30, to)
        assert shown["error"].endswith("resolves to a private address")


class Private(aiohttp.abc.AbstractResolver):
    """Every name is this machine."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[aiohttp.abc.ResolveResult]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 6, "flags": 4}]

    async def close(self) -> None:
        """Nothing is open."""


def test_a_destination_shows_no_keys() -> None:
    assert SECRET not in repr(destination("http://x.example"))
