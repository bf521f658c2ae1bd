from __future__ import annotations

import hashlib
from pathlib import Path

import attrs

from aiservices.storage.s3.journal import Journal, Piece
from aiservices.storage.s3.remote import RemoteObject

ONE, OTHER = RemoteObject("a/one", 10, "e1"), RemoteObject("other", 5, "e2")
PIECES = [Piece(0, 5, b"\0" * 16), Piece(5, 5, b"\1" * 16)]


def test_pieces_are_read_back_by_path_and_etag(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert (journal.read(), journal.recorded_bytes()) == ({}, 0)
    for piece in PIECES:
        journal.add(ONE, piece)
    journal.add(attrs.evolve(ONE, etag="newer"), PIECES[0])
    journal.add(OTHER, PIECES[0])
    assert journal.read() == {
        ("a/one", "e1"): {0: PIECES[0], 5: PIECES[1]},
        ("a/one", "newer"): {0: PIECES[0]},
        ("other", "e2"): {0: PIECES[0]},
    }
    assert journal.recorded_bytes() == 20
    journal.discard(ONE)
    assert journal.read() == {("other", "e2"): {0: PIECES[0]}}
    journal.clear()
    assert journal.read() == {}


def test_a_line_that_was_cut_off_is_skipped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.add(ONE, PIECES[0])
    journal.add(ONE, PIECES[1])
    journal.path.write_bytes(journal.path.read_bytes()[:-10])
    assert journal.read() == {("a/one", "e1"): {0: PIECES[0]}}


def test_a_piece_knows_whether_a_file_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    piece = Piece(2, 3, hashlib.md5(b"cde").digest())
    assert not piece.is_in(path)
    path.write_bytes(b"abcdef")
    assert piece.is_in(path)
    path.write_bytes(b"abXdef")
    assert not piece.is_in(path)
