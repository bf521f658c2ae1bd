"""Pieces of an object: received, hashed and written by one thread, which may wait for network and disk.

Threads, because hashing, writing and receiving (TLS too) leave the interpreter to others, and what a loop would do for
each block of a gigabyte takes longer than the rest.
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
from aiservices.storage.s3.client import Attempts, Changed, Truncated, code_of, status_of
from aiservices.storage.s3.local import Piece
from aiservices.storage.s3.location import Location
from aiservices.storage.s3.remote import RemoteObject
from aiservices.storage.s3.transfer import get, let_go, open_http
from aiservices.storage.threads import in_thread

BLOCK_BYTES = 256 * 1024
"""What is received, hashed and written at once: it stays in the processor's cache."""

URL_LIFETIME_S = 900
"""How long a signed request may be sent: as long as S3 takes the signature of a header."""


class Closed(Exception):
    """Nobody wants the piece any more."""


class PieceWriter:
    """Writes adjacent pieces into their file as they come. One thread writes; another may close it.

    Once it is closed not a byte is written: the folder may be somebody else's by then.

    Args:
        pieces: offset and length of each, at least one.
        on_piece: told what is written whole, in the thread that wrote.
    """

    def __init__(self, path: Path, pieces: Sequence[tuple[int, int]], on_piece: Callable[[Piece], None]) -> None:
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
        """Offsets in the file that have not come."""
        return range(self._at, self._end)

    @property
    def fits(self) -> int:
        """How many bytes belong to the piece that is being written."""
        return sum(self._left[0]) - self._at

    def write(self, block: bytes) -> None:
        """Take the next bytes, at most as many as fit; blocking.

        Raises:
            Closed: nobody wants them.
            OSError: the disk does not take them.
        """
        left = memoryview(block)
        with self._lock:
            file = self._opened()
            while left:
                written = os.pwrite(file, left, self._at)
                self._digest.update(left[:written])
                self._at += written
                left = left[written:]
            if not self.fits:
                self._end_piece()

    def finish(self) -> None:
        """Let go of the file, in which everything is; blocking."""
        with self._lock:
            self._opened()
            if self._left:  # an empty file, of which nothing comes
                self._end_piece()
        self.close()

    def close(self) -> None:
        """Let go of the file, whatever happened."""
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
    """Where objects come from: a client, a place and how often to try.

    Args:
        client: signs the requests.
        on_bytes: told how many bytes came, in any thread.
    """

    def __init__(self, client: Any, location: Location, settings: S3Config, on_bytes: Callable[[int], None]) -> None:
        self._client = client
        self._location = location
        self._settings = settings
        self._on_bytes = on_bytes
        self._http = open_http(settings, client.meta.endpoint_url)
        self.opaque: set[str] = set()
        """Paths of objects whose ETag says nothing about their content, as under some kinds of encryption."""

    async def fetch(self, each: RemoteObject, writer: PieceWriter) -> None:
        """Receive what a writer misses; what breaks off goes on where it was.

        Raises:
            Changed: the object is another by now, or gone.
        """
        attempts = Attempts(self._settings)
        while True:
            before = writer.missing
            try:
                return await in_thread(self._receive, each, await self._sign(each), writer)
            except Exception as error:
                if status_of(error) in (412, 416) or code_of(error) in ("NoSuchKey", "404"):
                    raise Changed(each.path) from error
                attempts.failed = 0 if writer.missing != before else attempts.failed
                await attempts.after(error)

    def close(self) -> None:
        """Close the connections that nothing comes through any more."""
        self._http.close()

    async def _sign(self, each: RemoteObject) -> str:
        what = {"Bucket": self._location.bucket, "Key": self._location.below + each.path}
        url = await self._client.generate_presigned_url("get_object", Params=what, ExpiresIn=URL_LIFETIME_S)
        return str(url)

    def _receive(self, each: RemoteObject, url: str, writer: PieceWriter) -> None:
        """Fetch what is missing; blocking."""
        from urllib3.exceptions import HTTPError

        if missing := writer.missing:
            response = get(self._http, url, _headers(each, missing))
            try:
                self._check(each, response, len(missing))
                while missing := writer.missing:
                    block = response.raw.read1(min(BLOCK_BYTES, writer.fits))
                    if not block:
                        raise Truncated(f"{each.path}: the body ended {len(missing)} bytes early")
                    writer.write(block)
                    self._on_bytes(len(block))
            except HTTPError as error:
                raise Truncated(f"{each.path}: the body broke off ({type(error).__name__})") from None
            finally:
                let_go(response, clean=not writer.missing)
        writer.finish()

    def _check(self, each: RemoteObject, response: Any, wanted: int) -> None:
        headers: Mapping[str, str] = response.headers
        if headers.get("ETag", "").strip('"') != each.etag:  # from a store that ignores If-Match
            raise Changed(each.path)
        if (offered := int(headers.get("Content-Length", -1))) != wanted:
            raise Truncated(f"{each.path}: {offered} bytes are offered where {wanted} were asked for")
        encryption = headers.get("x-amz-server-side-encryption", "")
        if "kms" in encryption or headers.get("x-amz-server-side-encryption-customer-algorithm"):
            self.opaque.add(each.path)


def _headers(each: RemoteObject, missing: range) -> dict[str, str]:
    """Ask for a range; for the whole object without one, which is less work for some stores."""
    headers = {"If-Match": f'"{each.etag}"'}
    if missing != range(each.size):
        headers["Range"] = f"bytes={missing.start}-{missing.stop - 1}"
    return headers
