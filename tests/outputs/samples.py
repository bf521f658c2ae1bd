"""Handlers whose outputs hold files, a registry around them, and a proxy before a bucket that breaks things."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import aiohttp
import attrs
import msgspec
from aiohttp import web
from aiohttp.abc import AbstractResolver
from aiohttp.test_utils import TestServer

from aiservices.fetch import Fetcher
from aiservices.handler import BatchHandler, Task, output_file
from aiservices.jobs import Destination, JobRequest
from aiservices.jobs.output import encode_status
from aiservices.registry import Registry
from aiservices.service import Service
from aiservices.settings import Config, FetchConfig, OutputsConfig, S3Config, ServerConfig, ServiceConfig
from tests.fakes import TextInput

SECRET = "the-secret-of-the-bucket"
BUCKET = "outputs"
LIMIT_S = 20.0


@attrs.frozen
class Sound:
    """A file beside what describes it."""

    audio: Annotated[bytes, output_file("The sound.")]
    media_type: str
    text: str


class Speak(BatchHandler[TextInput, Sound]):
    """Answers with ``count`` bytes of sound."""

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[Sound | Exception]:
        return [Sound(sound(task.item), "audio/wav", task.item.text * (task.item.text == "long")) for task in tasks]


class Write(BatchHandler[TextInput, TextInput]):
    """Answers with a text of ``count`` characters and holds no file."""

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextInput | Exception]:
        return [TextInput("x" * task.item.count, task.item.count) for task in tasks]


def sound(given: TextInput) -> bytes:
    return (given.text.encode() * given.count)[: given.count]


def destination(url: str, **changes: str) -> Destination:
    given = {
        "accessId": "key", "accessSecret": SECRET, "bucketName": BUCKET, "endpointUrl": url, "objectPath": "mine/",
    }  # fmt: skip
    return msgspec.convert({**given, **changes}, Destination)


@asynccontextmanager
async def started(
    kind: type[Any],
    *,
    allow: Sequence[str] = ("127.0.0.1",),
    resolver: AbstractResolver | None = None,
    **outputs: Any,
) -> AsyncIterator[Registry]:
    service = ServiceConfig(name="fake", handler=f"{kind.__module__}:{kind.__name__}", device="cpu", batch_wait_s=0)
    config = Config(
        server=ServerConfig(grace_s=0),
        fetch=FetchConfig(allow_hosts=tuple(allow)),
        s3=S3Config(region="us-east-1", access_key_id="key", secret_access_key=SECRET),
        outputs=OutputsConfig(**outputs),
        services={"fake": service},
    )
    registry = Registry(config, fetcher=Fetcher(config.fetch, resolver=resolver))
    await registry.start()
    try:
        yield registry
    finally:
        await registry.close()


@asynccontextmanager
async def running(kind: type[Any], **settings: Any) -> AsyncIterator[Service]:
    async with started(kind, **settings) as registry:
        yield registry.get("fake")


async def ask(service: Service, text: str, count: int, to: Destination | None = None) -> dict[str, Any]:
    job = service.submit(JobRequest(input={"text": text, "count": count}, destination=to))
    await job.wait_end(LIMIT_S)
    shown: dict[str, Any] = msgspec.json.decode(await encode_status(service.status(job), job.output))
    return shown


async def download(url: str) -> tuple[bytes, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
        return await answer.read(), answer.content_type


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
