"""One piece of an object: received on the loop, written at its offset and hashed in a thread meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from aiservices.config import S3Config
from aiservices.storage.s3.client import Attempts, Changed, Truncated, code_of, status_of
from aiservices.storage.s3.local import Piece
from aiservices.storage.s3.location import Location
from aiservices.storage.s3.remote import RemoteObject

BLOCK_BYTES = 2**20
"""What is collected before a thread writes it."""

MAX_BUFFERS = 512
"""How many chunks one block may have; the kernel takes 1024 at once (IOV_MAX)."""


class PieceWriter:
    """Writes what it is fed into a file at an offset, one block behind.

    Args:
        pool: threads that write and hash.
        on_done: told the MD5 when all is written, in the thread.
    """

    def __init__(self, pool: Executor, path: Path, begin: int, on_done: Callable[[bytes], None]) -> None:
        self.received = 0
        self._pool = pool
        self._path = path
        self._offset = begin
        self._on_done = on_done
        self._digest = hashlib.md5(usedforsecurity=False)
        self._file: int | None = None
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._writing: asyncio.Future[None] | None = None

    async def feed(self, chunk: bytes) -> None:
        """Take the next bytes; waits while the disk is slower than the network."""
        self._chunks.append(chunk)
        self.received += len(chunk)
        self._buffered += len(chunk)
        if self._buffered >= BLOCK_BYTES or len(self._chunks) >= MAX_BUFFERS:
            await self._settle()
            chunks, self._chunks, self._buffered = self._chunks, [], 0
            self._writing = asyncio.get_running_loop().run_in_executor(self._pool, self._write, chunks)

    async def finish(self) -> bytes:
        """Write what is left; return the MD5 of everything."""
        await self._settle()
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._finish)

    async def close(self) -> None:
        """Let go of the file, whatever happened."""
        with contextlib.suppress(Exception):
            await self._settle()
        if self._file is not None:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._close)

    async def _settle(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    def _write(self, chunks: list[bytes]) -> None:
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        for chunk in chunks:
            self._digest.update(chunk)
        while chunks:
            self._offset += (written := os.pwritev(self._file, chunks, self._offset))
            chunks = _rest(chunks, written)

    def _finish(self) -> bytes:
        self._write(self._chunks)
        self._close()
        self._on_done(self._digest.digest())
        return self._digest.digest()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def _rest(chunks: list[bytes], written: int) -> list[bytes]:
    """What a write has left over."""
    left = []
    for chunk in chunks:
        if written < len(chunk):
            left.append(chunk[written:])
        written = max(0, written - len(chunk))
    return left


class Source:
    """Where objects come from: a client, a place and how often to try.

    Args:
        on_bytes: told how many bytes came.
    """

    def __init__(self, client: Any, location: Location, settings: S3Config, on_bytes: Callable[[int], None]) -> None:
        self._client = client
        self._location = location
        self._settings = settings
        self._on_bytes = on_bytes
        self.opaque: set[str] = set()
        """Paths of objects whose ETag says nothing about their content, as under some kinds of encryption."""

    async def fetch(self, each: RemoteObject, begin: int, length: int, writer: PieceWriter) -> Piece:
        """Receive a piece whole; what breaks off goes on where it was.

        Raises:
            Changed: the object is another by now, or gone.
        """
        attempts = Attempts(self._settings)
        while writer.received < length:
            before = writer.received
            try:
                await self._receive(each, begin, length, writer)
            except Exception as error:
                if status_of(error) in (412, 416) or code_of(error) in ("NoSuchKey", "404"):
                    raise Changed(each.path) from error
                attempts.failed = 0 if writer.received > before else attempts.failed
                await attempts.after(error)
        return Piece(begin, length, await writer.finish())

    async def _receive(self, each: RemoteObject, begin: int, length: int, writer: PieceWriter) -> None:
        response = await self._get(each, begin + writer.received, begin + length)
        async with response["Body"] as body:
            self._check(each, response)
            left = length - writer.received
            if (offered := response["ContentLength"]) != left:
                raise Truncated(f"{each.path}: {offered} bytes are offered where {left} were asked for")
            async for chunk in body.content.iter_any():
                await writer.feed(chunk)
                self._on_bytes(len(chunk))
        if writer.received < length:
            raise Truncated(f"{each.path}: the body ended {length - writer.received} bytes early")

    async def _get(self, each: RemoteObject, begin: int, end: int) -> Any:
        """Ask for a range; for the whole object without one, which is less work for some stores."""
        some = {} if (begin, end) == (0, each.size) else {"Range": f"bytes={begin}-{end - 1}"}
        key = self._location.below + each.path
        return await self._client.get_object(Bucket=self._location.bucket, Key=key, IfMatch=f'"{each.etag}"', **some)

    def _check(self, each: RemoteObject, response: Any) -> None:
        if str(response["ETag"]).strip('"') != each.etag:  # from a store that ignores If-Match
            raise Changed(each.path)
        if response.get("SSECustomerAlgorithm") or "kms" in response.get("ServerSideEncryption", ""):
            self.opaque.add(each.path)
