"""How a text is cut: a stream begins with a short piece, and its pieces grow."""

from __future__ import annotations

from typing import Any

import pytest

from aiservices.handlers.chatterbox.pieces import MAX_PIECE_CHARS, Piece, plan_pieces

SENTENCES = "This is sentence number one, and it goes on for a while. " * 20


class Reader:
    """Reads a token a letter."""

    def without_marks(self, text: str) -> str:
        return text

    def read(self, piece: str, language: str) -> list[int]:
        return [ord(letter) for letter in piece]


def planned(text: str, *, streamed: bool = True) -> list[Piece]:
    reader: Any = Reader()
    return plan_pieces(text, reader, "en", 0.15, streamed=streamed)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (SENTENCES, "This is sentence number one,"),
        ("Good morning to all of you. " + SENTENCES, "Good morning to all of you."),
        ("Well, dear friends of mine, we meet. " + SENTENCES, "Well, dear friends of mine,"),
        ("word " * 60, "word " * 11 + "word"),
        ("\u5b57" * 150, "\u5b57" * 60),
        ("This is short, is it not?", "This is short, is it not?"),
        ("A sentence with no pause in it that is a little longer than others.",) * 2,
        ("A text whose very last word is all that would stand alone, I say.",) * 2,
    ],
)
def test_a_stream_begins_with_a_clause_or_about_sixty_characters(text: str, first: str) -> None:
    assert planned(text)[0].text == first


def test_the_pieces_of_a_stream_grow_and_together_are_the_text() -> None:
    pieces = planned(SENTENCES)
    lengths = [len(piece.text) for piece in pieces]
    assert lengths[0] < 60
    assert lengths[1] <= 120
    assert lengths[2] <= 240
    assert max(lengths) <= MAX_PIECE_CHARS
    assert " ".join(piece.text for piece in pieces) == SENTENCES.strip()
    assert pieces[0].pause_s < pieces[1].pause_s, "a clause has a shorter pause than a sentence"


def test_only_the_first_paragraph_of_a_stream_is_cut_finer_and_no_other_text() -> None:
    whole = planned(SENTENCES, streamed=False)
    assert len(whole[0].text) > 240
    paragraphs = planned(f"{SENTENCES}\n\n{SENTENCES}")
    assert [piece.text for piece in paragraphs[-len(whole) :]] == [piece.text for piece in whole]
