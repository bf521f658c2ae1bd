"""The folders that hold one model: its complete versions, and the one that is being downloaded.

::

    model_dir/s3/NAME/0a1b2c…          a complete version; its name is a hash of all paths, sizes and ETags
    model_dir/s3/NAME/partial          the next version; its files in place, their pieces in any order
    model_dir/s3/NAME/journal          which pieces of it were written, with their MD5
    model_dir/s3/NAME/lease            which process downloads

A version gets its marker while it is still partial, and then its name by one rename, so whatever has such a name is
complete. A file that did not change between versions is one file with two names. So is what a service derived from such
a file and stored beside it under its name, as ``anna.1234.voice`` of ``anna.wav``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from aiservices.storage.s3.disk import files_below, link_or_copy, preallocate, size_of
from aiservices.storage.s3.journal import Journal, Piece
from aiservices.storage.s3.location import Location
from aiservices.storage.s3.marker import PARTIAL, Marker, StoredFile, complete_versions, write_marker
from aiservices.storage.s3.remote import RemoteObject

PREALLOCATED_BYTES = 16 * 2**20
"""Files of this size and above are preallocated: for small ones that is more work than it saves."""

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class ModelFolder:
    """Where one model of a bucket is stored. Everything here blocks.

    Args:
        s3_dir: the folder of all models from buckets.
        endpoint_url: two stores may have buckets of one name.
    """

    def __init__(self, s3_dir: Path, location: Location, endpoint_url: str) -> None:
        identity = "\0".join((endpoint_url, location.uri.partition("?")[2], location.name))
        readable = _NOT_IN_NAMES.sub("-", f"{location.bucket}-{location.prefix}").strip("-.")[:80]
        self.root = s3_dir / f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
        self.source = location.name
        self.partial = self.root / PARTIAL
        self.journal = Journal(self.root / "journal")
        self.lease = self.root / "lease"

    def version(self, fingerprint: str) -> Path:
        """Return the folder of a version, which need not exist."""
        return self.root / fingerprint

    def versions(self) -> list[tuple[Path, Marker]]:
        """Return the versions that can be relied on, the newest first."""
        found = [(folder, marker) for folder, marker in complete_versions(self.root) if marker.is_on_disk]
        return sorted(found, key=lambda version: -version[1].fetched_at)

    def reuse(self, remote: RemoteObject, versions: Sequence[tuple[Path, Marker]]) -> StoredFile | None:
        """Link a file that did not change from another version into the partial one.

        Returns:
            What that version says about the file; None if no version has it.
        """
        target = self.partial / remote.path
        for folder, marker in versions:
            stored, source = marker.files.get(remote.path), folder / remote.path
            if stored and (stored.size, stored.etag) == (remote.size, remote.etag) and size_of(source) == remote.size:
                target.unlink(missing_ok=True)
                link_or_copy(source, target)
                return stored
        return None

    def resume(self, remote: RemoteObject, pieces: Mapping[int, Piece], piece_bytes: int) -> dict[int, Piece]:
        """Return the pieces that are on disk as they were written; if there are none, remove the file.

        Args:
            pieces: those that the journal records, by offset.
            piece_bytes: the size of a piece in this download; others are of no use.
        """
        target, begins = self.partial / remote.path, range(0, max(remote.size, 1), piece_bytes)
        lengths = {begin: min(piece_bytes, remote.size - begin) for begin in begins}
        found = {
            begin: piece
            for begin, piece in pieces.items()
            if lengths.get(begin) == piece.length and piece.is_in(target)
        }
        if not found:
            # It may be one file with that of another version, which must not be written to.
            target.unlink(missing_ok=True)
        return found

    def preallocate(self, remote: RemoteObject) -> None:
        """Reserve the disk space of a large file: a full disk is found before the download, and writes cost less.

        Where the file system cannot, the space is taken as the bytes come.

        Raises:
            OSError: the disk is full.
        """
        if remote.size < PREALLOCATED_BYTES:
            return
        file = os.open(self.partial / remote.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            preallocate(file, remote.size)
        finally:
            os.close(file)

    def commit(self, fingerprint: str, marker: Marker) -> Path:
        """Turn the partial folder into a complete version: the marker first, the name last."""
        self._remove_others(marker)
        for folder, other in self.versions():
            with contextlib.suppress(OSError):  # a service derives again what is lost
                self._keep_derived(folder, other, marker)
        write_marker(self.partial, marker)
        target = self.version(fingerprint)
        if target.exists():  # damaged, or it would not have been downloaded again
            target.rename(discarded := self.root / f"damaged-{time.time_ns()}")
            shutil.rmtree(discarded, ignore_errors=True)
        self.partial.rename(target)
        self.journal.clear()
        return target

    def _remove_others(self, marker: Marker) -> None:
        """Remove the files of an earlier listing that this one does not have."""
        for name in files_below(self.partial) - set(marker.files):
            (self.partial / name).unlink()

    def _keep_derived(self, folder: Path, other: Marker, marker: Marker) -> None:
        """Link what was derived from files that did not change; what was derived from others is stale."""
        stems = {
            PurePosixPath(path).with_suffix("").as_posix()
            for path, file in marker.files.items()
            if (found := other.files.get(path)) and (found.size, found.etag) == (file.size, file.etag)
        }
        for name in files_below(folder) - set(other.files):
            target, begin = self.partial / name, name.rfind("/") + 1
            ends = (end for end, letter in enumerate(name) if letter == "." and end > begin)
            if any(name[:end] in stems for end in ends) and not target.exists():
                link_or_copy(folder / name, target)
