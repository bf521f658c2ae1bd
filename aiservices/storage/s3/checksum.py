"""Checksums of files, and what S3's ETags say about content."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import attrs

Verified = Literal["sha256", "etag", "size"]
"""What a file was checked against: a manifest's sum, the store's own checksum, or only its length."""

BLOCK_BYTES = 4 * 2**20

_PLAIN = re.compile(r"^[0-9a-f]{32}$")
_PARTS = re.compile(r"^[0-9a-f]{32}-(?P<count>[1-9]\d{0,4})$")  # S3 takes 10 000 parts

_USUAL_PART_MIB = (8, 5, 16, 10, 15, 25, 32, 50, 64, 100, 128, 256, 512, 1024)
"""Part sizes of common uploaders: the AWS tools (8), rclone (5), MinIO's mc (16, 64, 128), s3cmd (15), s5cmd (50)."""


@attrs.frozen
class ChecksumMismatch(Exception):
    """A file is not what it should be.

    Attributes:
        by: the checksum that shows it.
    """

    by: Verified


def count_parts(etag: str) -> int | None:
    """Return in how many parts an object was uploaded; None if it was uploaded in one request."""
    match = _PARTS.match(etag)
    return int(match["count"]) if match else None


def usual_part_bytes(size: int, parts: int) -> int | None:
    """Guess the size of the parts in bytes: a usual one that makes so many of them; None if there is none."""
    sizes = (mib * 2**20 for mib in _USUAL_PART_MIB)
    return next((part for part in sizes if math.ceil(size / part) == parts), None)


def is_md5(etag: str) -> bool:
    """Whether the ETag has the form of the content's MD5."""
    return _PLAIN.match(etag) is not None


def etag_of_parts(digests: Iterable[bytes]) -> str:
    """Return the ETag of an object that was uploaded in parts, from their MD5s.

    AWS, MinIO, Ceph and R2 compute it so, though no specification says so.
    """
    parts = list(digests)
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


def md5_of(path: Path, begin: int, length: int) -> bytes:
    """Return the MD5 of a part of a file; blocking."""
    digest = hashlib.md5(usedforsecurity=False)
    for block in _blocks(path, begin, length):
        digest.update(block)
    return digest.digest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex; blocking."""
    digest = hashlib.sha256()
    for block in _blocks(path, 0, path.stat().st_size):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path, begin: int, length: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(BLOCK_BYTES, max(length, 1))))
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        while length > 0 and (count := file.readinto(buffer[: min(length, len(buffer))])):
            yield buffer[:count]
            length -= count
