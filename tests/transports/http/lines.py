"""A server as ``serve`` runs it, and connections to it that are spoken to byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from aiservices.handler import Handler
from aiservices.settings import ServerConfig
from aiservices.transports.http.connections import Runner
from tests.fakes import Upper
from tests.transports.http.apps import make_app

GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Line:
    """One connection, spoken to byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def get(self, path: str) -> int:
        """Ask; return the answer's status."""
        await self.send(GET % path.encode())
        return int((await self.head()).split()[1])

    async def head(self) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """Read until the server closes."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def answer(self, path: str) -> tuple[int, bytes]:
        """Ask; return the answer's status and body."""
        await self.send(GET % path.encode())
        head = await self.head()
        size = next(int(line.split()[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        return int(head.split()[1]), await self.reader.readexactly(size)

    def close(self) -> None:
        self._writer.close()


class Served:
    """A running server."""

    def __init__(self, runner: Runner) -> None:
        self.port: int = runner.addresses[0][1]
        self.runner = runner
        self.lines: list[Line] = []

    async def line(self) -> Line:
        self.lines.append(line := Line(*await asyncio.open_connection("127.0.0.1", self.port)))
        return line


@asynccontextmanager
async def served(*fakes: type[Handler[Any, Any]], **bounds: Any) -> AsyncIterator[Served]:
    server = ServerConfig(**{"grace_s": 0.0, **bounds})
    runner = Runner(make_app(*(fakes or (Upper,)), server=server), server, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        running = Served(runner)
        try:
            yield running
        finally:
            for line in running.lines:
                line.close()
    finally:
        await runner.cleanup()
