"""The folders that keep one model: whole versions, and the one that is being downloaded.

::

    model_dir/s3/NAME/0a1b2c…          a whole version; its name stands for every path, size and ETag of the listing
    model_dir/s3/NAME/partial          the next one, files at their places, their pieces in any order
    model_dir/s3/NAME/journal          which pieces of it were written, with their MD5
    model_dir/s3/NAME/lease            who downloads

A version gets its marker while it is partial and its name by one rename: whatever has the name is whole. What did not
change between versions is one file with two names. So is what a service made of such a file and put beside it under
its name, as ``anna.1234.voice`` of ``anna.wav``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
import msgspec

from aiservices.storage.lease import this_machine
from aiservices.storage.s3.checksum import Verified, md5_of
from aiservices.storage.s3.location import Location
from aiservices.storage.s3.remote import MARKER, RemoteObject

PARTIAL = "partial"
SET_ASIDE_BYTES = 16 * 2**20
"""From here on a file's room is set aside: with small ones that is more work than it saves."""

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@attrs.frozen
class Kept:
    """One file of a whole version."""

    size: int
    etag: str
    verified: Verified


@attrs.frozen(kw_only=True)
class Marker:
    """What a whole version says of itself.

    Attributes:
        source: the URI without patterns.
        fetched_at: seconds since the epoch.
        unflushed_on: the machine (one boot of it) whose memory may hold what is not on disk yet; "" if all is.
    """

    source: str
    files: Mapping[str, Kept]
    fetched_at: float
    unflushed_on: str = ""

    @property
    def is_on_disk(self) -> bool:
        """Whether no cut of power can have taken any of it."""
        return self.unflushed_on in ("", this_machine())

    @property
    def bytes(self) -> int:
        """Sum of its files."""
        return sum(kept.size for kept in self.files.values())


@attrs.frozen
class Piece:
    """A piece of a file that was written, and the MD5 of its bytes."""

    begin: int
    length: int
    digest: bytes


class ModelFolder:
    """Where one model of a bucket is kept. Everything here blocks.

    Args:
        s3_dir: the folder of all models from buckets.
        endpoint_url: two stores may have buckets of one name.
    """

    def __init__(self, s3_dir: Path, location: Location, endpoint_url: str) -> None:
        which = "\0".join((endpoint_url, location.uri.partition("?")[2], location.name))
        readable = _NOT_IN_NAMES.sub("-", f"{location.bucket}-{location.prefix}").strip("-.")[:80]
        self.root = s3_dir / f"{readable}-{hashlib.sha256(which.encode()).hexdigest()[:8]}"
        self.source = location.name
        self.partial = self.root / PARTIAL
        self.journal = Journal(self.root / "journal")
        self.lease = self.root / "lease"

    def version(self, fingerprint: str) -> Path:
        """Return the folder of a version, which need not be there."""
        return self.root / fingerprint

    def versions(self) -> list[tuple[Path, Marker]]:
        """Return the versions that may be relied on, the newest first."""
        found = [(folder, marker) for folder, marker in whole_versions(self.root) if marker.is_on_disk]
        return sorted(found, key=lambda version: -version[1].fetched_at)

    def reuse(self, each: RemoteObject, versions: Sequence[tuple[Path, Marker]]) -> Kept | None:
        """Take a file that did not change over from another version; tell how it was verified there."""
        target = self.partial / each.path
        for folder, marker in versions:
            kept = marker.files.get(each.path)
            if kept and (kept.size, kept.etag) == (each.size, each.etag) and _size(folder / each.path) == each.size:
                target.unlink(missing_ok=True)
                _link(folder / each.path, target)
                return kept
        return None

    def resume(self, each: RemoteObject, pieces: Mapping[int, Piece], piece_bytes: int) -> dict[int, Piece]:
        """Return the pieces that are on disk as they were written; where there are none, clear the file away."""
        target = self.partial / each.path
        lengths = {begin: min(piece_bytes, each.size - begin) for begin in range(0, max(each.size, 1), piece_bytes)}
        found = {
            begin: piece
            for begin, piece in pieces.items()
            if lengths.get(begin) == piece.length and _is_there(target, piece)
        }
        if not found:
            # It may be one file with that of another version: it must not be written to.
            target.unlink(missing_ok=True)
        return found

    def set_aside(self, each: RemoteObject) -> None:
        """Have the disk keep room for a large file: found full beforehand, and written to with less work.

        Where the file system cannot, the room is taken as the bytes come.

        Raises:
            OSError: the disk is full.
        """
        if each.size < SET_ASIDE_BYTES:
            return
        file = os.open(self.partial / each.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _allocate(file, each.size)
        finally:
            os.close(file)

    def commit(self, fingerprint: str, marker: Marker) -> Path:
        """Make the partial folder a whole version: the marker first, the name last."""
        _clear_others(self.partial, set(marker.files))
        for folder, other in self.versions():
            with contextlib.suppress(OSError):  # what is lost is made again
                self._take_along(folder, other, marker)
        _write_marker(self.partial, marker)
        target = self.version(fingerprint)
        if target.exists():  # damaged, or we would not be here
            target.rename(discarded := self.root / f"damaged-{time.time_ns()}")
            shutil.rmtree(discarded, ignore_errors=True)
        self.partial.rename(target)
        self.journal.clear()
        return target

    def _take_along(self, folder: Path, other: Marker, marker: Marker) -> None:
        """Take over what was made of unchanged files; what was made of others is stale."""
        stems = {
            PurePosixPath(path).with_suffix("").as_posix()
            for path, kept in marker.files.items()
            if (found := other.files.get(path)) and (found.size, found.etag) == (kept.size, kept.etag)
        }
        for name in _files(folder) - set(other.files):
            target, begin = self.partial / name, name.rfind("/") + 1
            ends = (end for end, letter in enumerate(name) if letter == "." and end > begin)
            if any(name[:end] in stems for end in ends) and not target.exists():
                _link(folder / name, target)


def whole_versions(root: Path) -> Iterator[tuple[Path, Marker]]:
    """Yield the folders below a model's that have a marker; blocking."""
    with contextlib.suppress(FileNotFoundError):
        for folder in root.iterdir():
            marker = read_marker(folder) if folder.name != PARTIAL else None
            if marker:
                yield folder, marker


def read_marker(folder: Path) -> Marker | None:
    """Return what the folder says of itself; None if it is not whole. Blocking."""
    try:
        return msgspec.json.decode((folder / MARKER).read_bytes(), type=Marker)
    except (OSError, msgspec.MsgspecError):
        return None


def is_whole(folder: Path) -> bool:
    """Whether it has its marker and every file its size, and no power was cut before all was on disk; blocking."""
    marker = read_marker(folder)
    if marker is None or not marker.is_on_disk:
        return False
    return all(_size(folder / path) == kept.size for path, kept in marker.files.items())


def flush(folder: Path) -> None:
    """Have every file of a whole version on disk, then say so in its marker. Takes as long as the disk; blocking."""
    marker = read_marker(folder)
    if marker and marker.unflushed_on:
        for path in marker.files:
            _fsync(folder / path)
        _write_marker(folder, attrs.evolve(marker, unflushed_on=""))


class Journal:
    """Which pieces were written: one line each, so that it is never half right."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, each: RemoteObject, piece: Piece) -> None:
        """Note a piece."""
        self._append([each.path, each.etag, piece.begin, piece.length, piece.digest.hex()])

    def forget(self, each: RemoteObject) -> None:
        """Note that none of a file's pieces count any more."""
        self._append([each.path])

    def read(self) -> dict[tuple[str, str], dict[int, Piece]]:
        """Return pieces by path and ETag; a line that a kill cut off is none."""
        found: dict[tuple[str, str], dict[int, Piece]] = {}
        for path, *rest in self._lines():
            if rest:
                etag, begin, length, digest = rest
                found.setdefault((path, etag), {})[begin] = Piece(begin, length, bytes.fromhex(digest))
            else:
                found = {key: pieces for key, pieces in found.items() if key[0] != path}
        return found

    def bytes(self) -> int:
        """Return how much is noted; cheap enough to ask now and then, and as rough."""
        return sum(rest[2] for _, *rest in self._lines() if rest)

    def clear(self) -> None:
        """Forget everything."""
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


def _is_there(path: Path, piece: Piece) -> bool:
    try:
        return md5_of(path, piece.begin, piece.length) == piece.digest
    except OSError:
        return False


def _allocate(file: int, size: int) -> None:
    """Call Linux's fallocate; ``os.posix_fallocate`` would write zeros where the file system knows of no such thing."""
    allocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if allocate is None or allocate(file, 0, ctypes.c_longlong(0), ctypes.c_longlong(size)) == 0:
        return
    if (number := ctypes.get_errno()) in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(number, os.strerror(number))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _clear_others(folder: Path, wanted: set[str]) -> None:
    """Remove what an earlier listing had and this one has not."""
    for name in _files(folder) - wanted:
        (folder / name).unlink()


def _files(folder: Path) -> set[str]:
    """Return the paths of all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _write_marker(folder: Path, marker: Marker) -> None:
    new = folder / f"{MARKER}.new"
    new.write_bytes(msgspec.json.encode(marker))
    _fsync(new)
    new.replace(folder / MARKER)


def _fsync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
