"""The marker file of a complete version: a folder without one is not loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import msgspec

from aiservices.storage.lease import this_machine
from aiservices.storage.s3.checksum import Verified
from aiservices.storage.s3.disk import fsync, size_of

MARKER = ".aiservices.json"
"""Name of the marker; an object of that name in a bucket is not a file of the model."""

PARTIAL = "partial"
"""Name of the folder beside the versions that holds the next one while it is downloaded."""


@attrs.frozen
class StoredFile:
    """One file of a complete version.

    Attributes:
        size: bytes.
        verified: what its content was checked against.
    """

    size: int
    etag: str
    verified: Verified


@attrs.frozen(kw_only=True)
class Marker:
    """What the marker file says about its version.

    Attributes:
        source: the URI without patterns.
        files: by their paths below the folder.
        fetched_at: seconds since the epoch.
        unflushed_on: the machine (one boot of it) whose memory may hold what is not on disk yet; "" if all is.
    """

    source: str
    files: Mapping[str, StoredFile]
    fetched_at: float
    unflushed_on: str = ""

    @property
    def is_on_disk(self) -> bool:
        """Whether no power cut can have destroyed any of it."""
        return self.unflushed_on in ("", this_machine())

    @property
    def bytes(self) -> int:
        """Sum of the sizes of its files."""
        return sum(file.size for file in self.files.values())


def read_marker(folder: Path) -> Marker | None:
    """Return the folder's marker; None if the folder is not complete. Blocking."""
    try:
        return msgspec.json.decode((folder / MARKER).read_bytes(), type=Marker)
    except (OSError, msgspec.MsgspecError):
        return None


def write_marker(folder: Path, marker: Marker) -> None:
    """Replace the folder's marker in one step; blocking."""
    new = folder / f"{MARKER}.new"
    new.write_bytes(msgspec.json.encode(marker))
    fsync(new)
    new.replace(folder / MARKER)


def complete_versions(root: Path) -> Iterator[tuple[Path, Marker]]:
    """Yield a model's folders that have a marker; blocking."""
    with contextlib.suppress(FileNotFoundError):
        for folder in root.iterdir():
            marker = read_marker(folder) if folder.name != PARTIAL else None
            if marker:
                yield folder, marker


def is_complete(folder: Path) -> bool:
    """Whether it has a marker and every file has its size, and no power cut came before all was on disk; blocking."""
    marker = read_marker(folder)
    if marker is None or not marker.is_on_disk:
        return False
    return all(size_of(folder / path) == file.size for path, file in marker.files.items())


def flush(folder: Path) -> None:
    """Wait until every file of a complete version is on disk, then note that in its marker; blocking."""
    marker = read_marker(folder)
    if marker and marker.unflushed_on:
        for path in marker.files:
            fsync(folder / path)
        write_marker(folder, attrs.evolve(marker, unflushed_on=""))
