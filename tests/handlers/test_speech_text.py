"""Where a text is cut, and what cannot be said of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiservices.handlers.speech_text import plain_text, split_text


def test_short_text_stays_whole_with_single_spaces() -> None:
    assert split_text("  One two.\n\nThree,  four. ", 300) == ["One two. Three, four."]
    assert split_text(" \n ", 300) == []


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One two. Three four! Five six?", ["One two.", "Three four!", "Five six?"]),
        ('He said "no." She said yes.', ['He said "no."', "She said yes."]),
        ("a b. c d. e f. g h i j k l", ["a b. c d. e f.", "g h i j k l"]),
        ("one two, three four, five six", ["one two,", "three four,", "five six"]),
        ("one two three four five six", ["one two three", "four five six"]),
        (
            "\u4e00\u4e8c\u3002\u4e09\u56db\u4e94\uff01" + "\u516d" * 12,
            ["\u4e00\u4e8c\u3002\u4e09\u56db\u4e94\uff01", "\u516d" * 12],
        ),
        ("x" * 35, ["x" * 15, "x" * 15, "x" * 5]),
        ("version 1.5.2 of a thing", ["version 1.5.2", "of a thing"]),
    ],
)
def test_long_text_is_split_at_the_best_place(text: str, pieces: list[str]) -> None:
    assert split_text(text, 15) == pieces


@settings(deadline=None)
@given(st.text(alphabet="ab .,!?\n\u2026", max_size=400), st.integers(1, 60))
def test_a_split_text_loses_nothing_and_has_no_piece_that_is_too_long(text: str, max_chars: int) -> None:
    pieces = split_text(text, max_chars)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= max_chars for piece in pieces)


def test_what_cannot_be_said_is_taken_out() -> None:
    assert plain_text("A\x00b\u200bc \U0001f600 e\u0301\n\nd\ud800") == "A bc   \u00e9\n\nd "
    assert (
        plain_text("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645")
        == "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    )
