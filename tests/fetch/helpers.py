"""What the tests of the guarded download share: names from a table, servers that answer or misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from aiservices.errors import FetchError
from aiservices.fetch import Fetcher
from aiservices.handler import MediaKind
from aiservices.settings import FetchConfig

PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)
WAV = b"RIFF\x24\0\0\0WAVEfmt " + bytes(200)
SECRET = "X-Amz-Signature=5ec2e7"
LOOPBACK = FetchConfig(allow_hosts=("127.0.0.1",), timeout_s=5)
OK = b"HTTP/1.1 200 OK\r\n"

Answer: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve: TypeAlias = Callable[..., Awaitable[URL]]
RawAnswer: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

whole_loopback_net = pytest.mark.skipif(
    sys.platform == "darwin", reason="127.0.0.2 and up are missing: sudo ifconfig lo0 alias 127.0.0.2 (and .19)"
)


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


def answering(body: bytes, **options: Any) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body, **options)

    return answer


def redirecting(location: str, status: int = 302) -> Answer:
    return answering(b"", status=status, headers={"Location": location})


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
