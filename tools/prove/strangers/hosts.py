"""Hosts that mean no good: a name server that rebinds, and a server that is silent, slow, endless or a liar."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
from collections.abc import AsyncIterator, Sequence
from urllib.parse import unquote

from aiohttp.abc import AbstractResolver, ResolveResult

PUBLIC = "127.0.0.2"
"""Stands for an address of the public internet: allowed, with its port."""

_PNG = b"\x89PNG\r\n\x1a\n"
_OK = b"HTTP/1.1 200 OK\r\n"
_BLOCK = bytes(65536)

BEHAVIOURS = (
    "silent", "closes", "resets", "drips-head", "drips-body", "one-byte-chunks", "endless-body", "endless-chunks",
    "endless-head", "endless-header", "endless-trailer", "gzip", "br", "zstd", "long", "negative", "two-lengths",
    "garbage", "upgrade", "continues",
)  # fmt: skip
"""What the server does when asked for the path of that name."""


class Names(AbstractResolver):
    """Answers from a table; ``rebind.test`` is public once and inside from then on.

    Args:
        table: addresses of each name.
    """

    def __init__(self, table: dict[str, list[str]]) -> None:
        self._table = table
        self.rebinds = True

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Answer as the table says.

        Raises:
            OSError: the name is not in it.
        """
        name = host.lower().removesuffix(".")
        if name == "rebind.test":
            self.rebinds = not self.rebinds
            return [_found(host, "127.0.0.1" if self.rebinds else PUBLIC, port)]
        if name not in self._table:
            raise OSError("name not known")
        return [_found(host, address, port) for address in self._table[name]]

    async def close(self) -> None:
        """Nothing is open."""


def _found(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)


@contextlib.asynccontextmanager
async def hostile_server() -> AsyncIterator[int]:
    """Serve ``/BEHAVIOUR`` and ``/redirect/STATUS/URL`` at :data:`PUBLIC`; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled is what still talks at the end.
        ends = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError)
        with contextlib.suppress(*ends):
            head = await reader.readuntil(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode()
            if target.startswith("/redirect/"):
                _, _, status, url, *_ = target.split("/", 4)
                location = unquote(url).encode("utf-8", "ignore")
                writer.write(b"HTTP/1.1 %s Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (
                    status.encode(), location.replace(b"\r\n", b"")
                ))  # fmt: skip
                await writer.drain()
            else:
                await _behave(target.split("/")[1], reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, PUBLIC, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _behave(how: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if how == "resets":
        writer.transport.abort()
    elif how != "closes":
        begin, again, pause_s = _parts(how)
        writer.write(begin)
        await writer.drain()
        while again:
            writer.write(again)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if how == "silent":
            while await reader.read(65536):
                pass


def _parts(how: str) -> tuple[bytes, bytes, float]:
    """What it sends at first, what it sends for ever, and the pause between, in seconds."""
    chunked = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
    table: dict[str, tuple[bytes, bytes, float]] = {
        "silent": (b"", b"", 0),
        "drips-head": (_OK, b"a: b\r\n", 0.05),
        "drips-body": (_OK + b"\r\n" + _PNG, b"a", 0.05),
        "one-byte-chunks": (chunked, b"1\r\na\r\n" * 2000, 0),
        "endless-body": (_OK + b"\r\n" + _PNG, _BLOCK, 0),
        "endless-chunks": (chunked + b"8\r\n" + _PNG + b"\r\n", b"10000\r\n" + _BLOCK + b"\r\n", 0),
        "endless-head": (_OK, b"a: b\r\n" * 1000, 0),
        "endless-header": (_OK + b"a: ", b"b" * 65536, 0),
        "endless-trailer": (chunked + b"0\r\n", b"a: b\r\n" * 1000, 0),
        "gzip": (_encoded(b"gzip", gzip.compress(bytes(2**25))), b"", 0),
        "br": (_encoded(b"br", b"\xcf\xff\xff\x7f" * 64), b"", 0),
        "zstd": (_encoded(b"zstd", b"\x28\xb5\x2f\xfd" + bytes(256)), b"", 0),
        "long": (_OK + b"Content-Length: %d\r\n\r\n" % 2**62, b"", 0),
        "negative": (_OK + b"Content-Length: -1\r\n\r\n", b"", 0),
        "two-lengths": (_OK + b"Content-Length: 1\r\nContent-Length: 9\r\n\r\na", b"", 0),
        "garbage": (b"\0\xff" * 999 + b"\r\n\r\n", b"", 0),
        "upgrade": (b"HTTP/1.1 101 Switching\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n", _BLOCK, 0),
        "continues": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 0),
    }
    return table.get(how, (b"", b"", 0))  # else it closes


def _encoded(encoding: bytes, body: bytes) -> bytes:
    return _OK + b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (encoding, len(body)) + body


@contextlib.asynccontextmanager
async def canary() -> AsyncIterator[tuple[int, Sequence[int]]]:
    """Listen on every address of this machine: the port, and the number of bytes of each connection that came."""
    heard: list[int] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(len(await reader.read(65536)))
        writer.close()

    listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    server = await asyncio.start_server(hear, sock=listener)
    try:
        yield listener.getsockname()[1], heard
    finally:
        server.close()
