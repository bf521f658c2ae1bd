"""Payloads too large for a row: files named by what they hold, in a folder beside the journal."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

INLINE_BYTES = 64 * 1024
"""Larger payloads get a file: below, SQLite reads and writes a blob faster than a file system does
(https://www.sqlite.org/intern-v-extern-blob.html)."""


class Blobs:
    """The files, and how many rows' payloads name each. On the writer's thread only.

    Args:
        folder: where they lie; made with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: Counter[str] = Counter()
        self._unnamed: set[str] = set()

    def put(self, payload: bytes) -> bytes | str:
        """Return a small payload as it is; write a large one, durably, and return its file's name.

        Raises:
            OSError: it could not be written; nothing is left of it.
        """
        if len(payload) <= INLINE_BYTES:
            return payload
        name = hashlib.blake2b(payload, digest_size=32).hexdigest()
        if name not in self._names and name not in self._unnamed:
            self._write(self._file(name), payload)
            self._unnamed.add(name)
        return name

    def get(self, stored: bytes | str) -> bytes:
        """Return what :meth:`put` was given.

        Raises:
            OSError: its file cannot be read.
            ValueError: its file holds something else.
        """
        if isinstance(stored, bytes):
            return stored
        payload = self._file(stored).read_bytes()
        if hashlib.blake2b(payload, digest_size=32).hexdigest() != stored:
            raise ValueError("the file of a payload was changed")
        return payload

    def named(self, names: Iterable[str]) -> None:
        """Count names that committed rows hold."""
        for name in names:
            self._names[name] += 1
            self._unnamed.discard(name)

    def dropped(self, names: Iterable[str]) -> None:
        """Count names that committed rows no longer hold."""
        for name in names:
            self._names[name] -= 1
            if self._names[name] <= 0:
                del self._names[name]
                self._unnamed.add(name)

    def collect(self) -> None:
        """Delete the files that no committed row names. What cannot be deleted goes with the next sweep."""
        for name in self._unnamed:
            with contextlib.suppress(OSError):
                self._file(name).unlink()
        self._unnamed.clear()

    def sweep(self) -> None:
        """Delete what a killed process left: half-written files, and files that no row names."""
        for path in self._folder.glob("*/*"):
            if path.name not in self._names:
                path.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._folder / name[:2] / name

    def _write(self, path: Path, payload: bytes) -> None:
        for folder in (self._folder, path.parent):
            if not folder.exists():
                folder.mkdir(mode=0o700)
                sync_folder(folder.parent)
        half = path.with_name(f"{path.name}.half")
        try:
            descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(descriptor)
            half.rename(path)
            sync_folder(path.parent)
        except OSError:
            for left in (half, path):
                with contextlib.suppress(OSError):
                    left.unlink(missing_ok=True)
            raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
