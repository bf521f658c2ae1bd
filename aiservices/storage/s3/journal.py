"""The record of which pieces of a partial download were written, so that the next attempt resumes from them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from aiservices.storage.s3.checksum import md5_of
from aiservices.storage.s3.remote import RemoteObject


@attrs.frozen
class Piece:
    """A piece of a file that was written.

    Attributes:
        begin: offset in the file, in bytes.
        length: bytes.
        digest: MD5 of its bytes.
    """

    begin: int
    length: int
    digest: bytes

    def is_in(self, path: Path) -> bool:
        """Whether a file holds exactly these bytes there; blocking."""
        try:
            return md5_of(path, self.begin, self.length) == self.digest
        except OSError:
            return False


class Journal:
    """A file with one line per piece, appended at once, so that a crash cannot leave it half right. Blocking."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, remote: RemoteObject, piece: Piece) -> None:
        """Record a piece."""
        self._append([remote.path, remote.etag, piece.begin, piece.length, piece.digest.hex()])

    def discard(self, remote: RemoteObject) -> None:
        """Record that none of a file's pieces count any more."""
        self._append([remote.path])

    def read(self) -> dict[tuple[str, str], dict[int, Piece]]:
        """Return the pieces by path and ETag, then by offset; a line that was cut off is skipped."""
        found: dict[tuple[str, str], dict[int, Piece]] = {}
        for path, *rest in self._lines():
            if rest:
                etag, begin, length, digest = rest
                found.setdefault((path, etag), {})[begin] = Piece(begin, length, bytes.fromhex(digest))
            else:
                found = {key: pieces for key, pieces in found.items() if key[0] != path}
        return found

    def recorded_bytes(self) -> int:
        """Return roughly how many bytes were written; cheap enough to poll."""
        return sum(rest[2] for _, *rest in self._lines() if rest)

    def clear(self) -> None:
        """Remove every record."""
        self.path.unlink(missing_ok=True)

    def _append(self, line: list[Any]) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")

    def _lines(self) -> Iterator[list[Any]]:
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            with contextlib.suppress(ValueError):
                yield json.loads(line)
