"""What to request: the pieces of each file, and how many adjacent ones at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from aiservices.storage.s3.checksum import count_parts, usual_part_bytes
from aiservices.storage.s3.journal import Piece
from aiservices.storage.s3.marker import StoredFile
from aiservices.storage.s3.remote import RemoteObject

MAX_PIECE_BYTES = 64 * 2**20
"""Larger parts of an upload are not used as pieces: an interruption would lose more."""

MIN_PIECE_BYTES = 2**20
"""Smaller parts, which S3 refuses (below 5 MiB), are not used either: each piece takes memory."""

MAX_REQUEST_BYTES = 64 * 2**20
"""The most that one request asks for: adjacent pieces, since each request costs both sides a millisecond."""

REQUESTS_PER_WORKER = 4
"""How many requests each worker gets at least, where there is enough to download: so that all end at about once."""

Span = tuple[int, int]
"""Offset and length of a piece, in bytes."""


@attrs.define(eq=False)
class Target:
    """One file that is being downloaded.

    Attributes:
        piece_bytes: the size of its pieces but for the last.
        part_bytes: how large the parts of its upload were, as far as known.
        part_bytes_certain: the store said so; it is not a guess.
        pieces: those that are written, by offset.
        stored: set once the file is complete and checked.
    """

    remote: RemoteObject
    piece_bytes: int
    part_bytes: int | None = None
    part_bytes_certain: bool = False
    pieces: dict[int, Piece] = attrs.Factory(dict)
    stored: StoredFile | None = None

    def missing(self) -> list[Span]:
        """Return the pieces that are not written; an empty file is one empty piece."""
        size = self.remote.size
        begins = range(0, max(size, 1), self.piece_bytes)
        return [(begin, min(self.piece_bytes, size - begin)) for begin in begins if begin not in self.pieces]

    def missing_bytes(self) -> int:
        """Return how much of the file is not written."""
        return 0 if self.stored else sum(length for _, length in self.missing())


def plan_target(remote: RemoteObject, piece_bytes: int, reported_part_bytes: int | None) -> Target:
    """Choose the pieces: the upload's own parts where that is possible, since their MD5s make up the ETag.

    Args:
        piece_bytes: the size of pieces otherwise.
        reported_part_bytes: the size of the upload's parts, if the store reports it.
    """
    parts = count_parts(remote.etag)
    if parts is None:
        return Target(remote, piece_bytes)
    part_bytes = reported_part_bytes or usual_part_bytes(remote.size, parts)
    if part_bytes is not None and MIN_PIECE_BYTES <= part_bytes <= MAX_PIECE_BYTES:
        piece_bytes = part_bytes
    return Target(remote, piece_bytes, part_bytes, reported_part_bytes is not None)


def plan_requests(targets: Sequence[Target], workers: int) -> list[tuple[Target, list[Span]]]:
    """Return what is missing as requests for adjacent pieces of one file, in the order of the targets.

    Where much is missing a request asks for much, but so that every worker is busy to the end.
    """
    missing = sum(target.missing_bytes() for target in targets)
    max_bytes = min(MAX_REQUEST_BYTES, missing // (REQUESTS_PER_WORKER * workers))
    return [(target, pieces) for target in targets for pieces in _adjacent(target.missing(), max_bytes)]


def _adjacent(pieces: Sequence[Span], max_bytes: int) -> Iterator[list[Span]]:
    """Group adjacent pieces, up to a number of bytes but at least one piece."""
    group: list[Span] = []
    for begin, length in pieces:
        if group and (begin != sum(group[-1]) or begin + length - group[0][0] > max_bytes):
            yield group
            group = []
        group.append((begin, length))
    if group:
        yield group
