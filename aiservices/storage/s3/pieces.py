"""Receive, hash and write the pieces of an object, in one thread per request, which may wait for network and disk.

Threads, because hashing, writing and receiving (TLS too) release the interpreter lock, and what an event loop would do
for each block of a gigabyte takes longer than all of that.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiservices.settings import S3Config
from aiservices.storage.concurrency import in_thread
from aiservices.storage.s3.client import Attempts, Changed, Truncated, code_of, status_of
from aiservices.storage.s3.journal import Piece
from aiservices.storage.s3.location import Location
from aiservices.storage.s3.plan import Span
from aiservices.storage.s3.remote import RemoteObject
from aiservices.storage.s3.transfer import get, open_http, release

BLOCK_BYTES = 256 * 1024
"""How much is received, hashed and written at once: it stays in the processor's cache."""

URL_LIFETIME_S = 900
"""How long a signed URL is valid: as long as S3 accepts a signature in a header."""


class Closed(Exception):
    """The writer was closed before its pieces were complete."""


class PieceWriter:
    """Writes adjacent pieces into their file as they come. One thread writes; another may close it.

    Once it is closed nothing is written: another process may own the folder by then.

    Args:
        pieces: at least one.
        on_piece: gets each piece that is complete, in the thread that wrote it.
    """

    def __init__(self, path: Path, pieces: Sequence[Span], on_piece: Callable[[Piece], None]) -> None:
        self._path = path
        self._left = deque(pieces)
        self._on_piece = on_piece
        self._digest = hashlib.md5(usedforsecurity=False)
        self._at = pieces[0][0]
        self._end = sum(pieces[-1])
        self._file: int | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def missing(self) -> range:
        """Offsets in the file that are not written."""
        return range(self._at, self._end)

    @property
    def piece_left_bytes(self) -> int:
        """How many bytes are left of the piece that is being written."""
        return sum(self._left[0]) - self._at

    def write(self, block: bytes) -> None:
        """Write the next bytes, at most :attr:`piece_left_bytes`; blocking.

        Raises:
            Closed: by another thread.
            OSError: the disk is full or broken.
        """
        left = memoryview(block)
        with self._lock:
            file = self._opened()
            while left:
                written = os.pwrite(file, left, self._at)
                self._digest.update(left[:written])
                self._at += written
                left = left[written:]
            if not self.piece_left_bytes:
                self._end_piece()

    def finish(self) -> None:
        """Close the file after the last byte; blocking."""
        with self._lock:
            self._opened()
            if self._left:  # an empty file, for which no bytes come
                self._end_piece()
        self.close()

    def close(self) -> None:
        """Close the file, whatever happened."""
        with self._lock:
            self._closed = True
            file, self._file = self._file, None
            if file is not None:
                os.close(file)

    def _end_piece(self) -> None:
        self._on_piece(Piece(*self._left.popleft(), self._digest.digest()))
        self._digest = hashlib.md5(usedforsecurity=False)

    def _opened(self) -> int:
        if self._closed:
            raise Closed
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return self._file


class Source:
    """Requests the bytes of objects, and tries again where that may help.

    Args:
        client: signs the requests.
        on_bytes: gets the number of bytes that came, in any thread.
    """

    def __init__(self, client: Any, location: Location, settings: S3Config, on_bytes: Callable[[int], None]) -> None:
        self._client = client
        self._location = location
        self._settings = settings
        self._on_bytes = on_bytes
        self._http = open_http(settings, client.meta.endpoint_url)
        self.opaque: set[str] = set()
        """Paths of objects whose ETag says nothing about their content, as under some kinds of encryption."""

    async def fetch(self, remote: RemoteObject, writer: PieceWriter) -> None:
        """Receive what a writer is missing; an interrupted body is continued where it ended.

        Raises:
            Changed: the object was replaced or removed.
        """
        attempts = Attempts(self._settings)
        while True:
            before = writer.missing
            try:
                return await in_thread(self._receive, remote, await self._sign(remote), writer)
            except Exception as error:
                if status_of(error) in (412, 416) or code_of(error) in ("NoSuchKey", "404"):
                    raise Changed(remote.path) from error
                attempts.failed = 0 if writer.missing != before else attempts.failed
                await attempts.after(error)

    def close(self) -> None:
        """Close the idle connections."""
        self._http.close()

    async def _sign(self, remote: RemoteObject) -> str:
        key = {"Bucket": self._location.bucket, "Key": self._location.below + remote.path}
        url = await self._client.generate_presigned_url("get_object", Params=key, ExpiresIn=URL_LIFETIME_S)
        return str(url)

    def _receive(self, remote: RemoteObject, url: str, writer: PieceWriter) -> None:
        """Request what is missing and write it; blocking."""
        from urllib3.exceptions import HTTPError

        if missing := writer.missing:
            response = get(self._http, url, _headers(remote, missing))
            try:
                self._check(remote, response, len(missing))
                while missing := writer.missing:
                    block = response.raw.read1(min(BLOCK_BYTES, writer.piece_left_bytes))
                    if not block:
                        raise Truncated(f"{remote.path}: the body ended {len(missing)} bytes early")
                    writer.write(block)
                    self._on_bytes(len(block))
            except HTTPError as error:
                raise Truncated(f"{remote.path}: the body was interrupted ({type(error).__name__})") from None
            finally:
                release(response, reusable=not writer.missing)
        writer.finish()

    def _check(self, remote: RemoteObject, response: Any, wanted: int) -> None:
        headers: Mapping[str, str] = response.headers
        if headers.get("ETag", "").strip('"') != remote.etag:  # from a store that ignores If-Match
            raise Changed(remote.path)
        if (offered := headers.get("Content-Length", "none")) != str(wanted):
            raise Truncated(f"{remote.path}: {offered[:20]} bytes are offered where {wanted} were requested")
        encryption = headers.get("x-amz-server-side-encryption", "")
        if "kms" in encryption or headers.get("x-amz-server-side-encryption-customer-algorithm"):
            self.opaque.add(remote.path)


def _headers(remote: RemoteObject, missing: range) -> dict[str, str]:
    """Ask for a range; for the whole object without one, which is less work for some stores."""
    headers = {"If-Match": f'"{remote.etag}"'}
    if missing != range(remote.size):
        headers["Range"] = f"bytes={missing.start}-{missing.stop - 1}"
    return headers
