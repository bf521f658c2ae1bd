from __future__ import annotations

import pytest

from aiservices.storage.s3.journal import Piece
from aiservices.storage.s3.marker import StoredFile
from aiservices.storage.s3.plan import MAX_PIECE_BYTES, Target, plan_requests, plan_target
from aiservices.storage.s3.remote import RemoteObject
from tests.storage.s3.samples import MIB

ETAG = "0" * 32


def written(begin: int, length: int) -> Piece:
    return Piece(begin, length, b"")


@pytest.mark.parametrize(
    ("etag", "reported", "expected"),
    [
        (ETAG, None, (4 * MIB, None, False)),  # uploaded in one request
        (f"{ETAG}-2", 15 * MIB, (15 * MIB, 15 * MIB, True)),
        (f"{ETAG}-2", None, (16 * MIB, 16 * MIB, False)),  # a usual size that fits
        (f"{ETAG}-7", None, (4 * MIB, None, False)),  # no usual size fits
        (f"{ETAG}-2", MAX_PIECE_BYTES + 1, (4 * MIB, MAX_PIECE_BYTES + 1, True)),  # too large for a piece
    ],
)
def test_the_parts_of_an_upload_are_its_pieces_where_possible(
    etag: str, reported: int | None, expected: tuple[int, int | None, bool]
) -> None:
    target = plan_target(RemoteObject("a", 20 * MIB, etag), 4 * MIB, reported)
    assert (target.piece_bytes, target.part_bytes, target.part_bytes_certain) == expected


def test_missing_pieces_are_those_that_are_not_written() -> None:
    target = Target(RemoteObject("a", 25, ETAG), 10, pieces={10: written(10, 10)})
    assert target.missing() == [(0, 10), (20, 5)]
    assert target.missing_bytes() == 15
    target.stored = StoredFile(25, ETAG, "etag")
    assert target.missing_bytes() == 0
    assert Target(RemoteObject("empty", 0, ETAG), 10).missing() == [(0, 0)]


def test_adjacent_pieces_are_requested_together_but_for_every_worker() -> None:
    large = Target(RemoteObject("large", 80, ETAG), 10, pieces={30: written(30, 10)})
    small = Target(RemoteObject("small", 10, ETAG), 10)
    together = plan_requests([large, small], workers=1)  # 80 bytes are missing: 20 a request
    assert together == [
        (large, [(0, 10), (10, 10)]),
        (large, [(20, 10)]),
        (large, [(40, 10), (50, 10)]),
        (large, [(60, 10), (70, 10)]),
        (small, [(0, 10)]),
    ]
    assert [pieces for _, pieces in plan_requests([large], workers=10)] == [[piece] for piece in large.missing()]
