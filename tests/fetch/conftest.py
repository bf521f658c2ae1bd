"""Servers on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from tests.fetch.helpers import (
    Answer,
    RawAnswer,
    Serve,
)


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
