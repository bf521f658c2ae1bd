"""Check a downloaded file against the best checksum there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import attrs

from aiservices.storage.s3.checksum import (
    ChecksumMismatch,
    Verified,
    etag_of_parts,
    is_md5,
    md5_of,
    sha256_of,
)
from aiservices.storage.s3.plan import Target


@attrs.frozen
class Verifier:
    """Checks files whose every piece is written.

    Attributes:
        sums: SHA-256 in hex by path, from a manifest.
        opaque: paths of objects whose ETag says nothing about their content; may grow while files are downloaded.
    """

    sums: Mapping[str, str]
    opaque: Set[str]

    def verify_in_memory(self, target: Target) -> Verified | None:
        """Check a file that came in one piece, without reading it again; None if that is not enough.

        Raises:
            ChecksumMismatch: it is not what the store has.
        """
        remote, only = target.remote, target.pieces.get(0)
        plain = is_md5(remote.etag) and remote.path not in self.sums and remote.path not in self.opaque
        if not plain or only is None or len(target.pieces) > 1:
            return None
        return _require("etag", only.digest.hex() == remote.etag)

    def verify(self, target: Target, path: Path) -> Verified:
        """Check a file on disk; blocking.

        Returns:
            What it was checked against: "size" where there is no usable checksum.

        Raises:
            ChecksumMismatch: it is not what the store has.
        """
        remote = target.remote
        if remote.path in self.sums:
            return _require("sha256", sha256_of(path) == self.sums[remote.path])
        if remote.path in self.opaque:
            return "size"
        if is_md5(remote.etag):
            return _require("etag", md5_of(path, 0, remote.size).hex() == remote.etag)
        if target.part_bytes is None:
            return "size"
        matches = etag_of_parts(_part_digests(target, target.part_bytes, path)) == remote.etag
        # Where the size of the parts is a guess, a mismatch may as well mean that the guess was wrong.
        return _require("etag", matches) if matches or target.part_bytes_certain else "size"


def _part_digests(target: Target, part_bytes: int, path: Path) -> Iterator[bytes]:
    for begin in range(0, target.remote.size, part_bytes):
        if target.piece_bytes == part_bytes:
            yield target.pieces[begin].digest
        else:
            yield md5_of(path, begin, min(part_bytes, target.remote.size - begin))


def _require(by: Verified, matches: bool) -> Verified:
    if not matches:
        raise ChecksumMismatch(by)
    return by
