"""A row's text and stream, above all where a stop text ends it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from aiservices.handler import Task
from aiservices.handlers.text.generation import Generated, GenerationRequest, Prompt
from aiservices.handlers.text.row import Row
from aiservices.handlers.text.stop import StopTexts
from tests.handlers.text_fakes import FakeContext


class _Letters:
    """A token is a letter, or one of the halves of one."""

    def __init__(self) -> None:
        self.half = ""

    def add(self, tokens: Sequence[int]) -> str:
        text = self.half + "".join(map(chr, tokens))
        self.half = text[-1:] if text.endswith("~") else ""
        return text.removesuffix("~")

    def finish(self) -> str:
        return self.half


def write(text: str, *stop: str, max_new_tokens: int = 99) -> tuple[Generated, FakeContext]:
    """Go through a row token by token as the engines do, reporting each time."""
    context = FakeContext()
    row = Row(Task(GenerationRequest(Prompt([0]), max_new_tokens, stop=stop), context), _Letters())
    for now_s, letter in enumerate(text):
        row.tokens.append(ord(letter))
        if row.stops():
            return row.finish("stop", drop_last=False), context
        if len(row.tokens) == max_new_tokens:
            break
        row.write(float(now_s))
    return row.finish("length", drop_last=False), context


@pytest.mark.parametrize(
    ("text", "stop", "written"),
    [
        ("red mug. And", (". ",), "red mug"),
        ("red mug", ("red",), ""),
        ("aaab", ("aab",), "a"),
        ("abcd", ("bcx", "bcd"), "a"),
        ("abcd", ("abcd", "b"), "a"),
        ("one\n\ntwo", ("\n\n", "two"), "one"),
        ("größe", ("ß",), "grö"),
    ],
)
def test_a_stop_text_ends_the_answer_before_it(text: str, stop: tuple[str, ...], written: str) -> None:
    result, context = write(text, *stop)
    assert (result.text, result.finish_reason) == (written, "stop")
    assert "".join(context.chunks) == written


def test_what_only_began_like_a_stop_text_is_written() -> None:
    result, context = write("a mug is a mu", "mug.", "mux")
    assert (result.text, result.finish_reason) == ("a mug is a mu", "length")
    assert "".join(context.chunks) == result.text


def test_a_stop_text_that_the_last_token_completes_counts_more_than_the_limit() -> None:
    result, _ = write("abcdef", "cd", max_new_tokens=4)
    assert (result.text, result.finish_reason, len(result.token_ids)) == ("ab", "stop", 4)


def test_a_stop_text_in_what_was_held_back_till_the_end_is_found() -> None:
    result, _ = write("ab~", "b~")
    assert (result.text, result.finish_reason) == ("a", "stop")


def test_no_chunk_ever_holds_a_part_of_a_stop_text() -> None:
    for seed in range(300):
        dice = random.Random(seed)
        text = "".join(dice.choices("ab", k=dice.randrange(1, 30)))
        stop = ["".join(dice.choices("ab", k=dice.randrange(1, 6))) for _ in range(dice.randrange(1, 5))]
        end = next((end for end in range(len(text)) if any(one in text[:end] for one in stop)), len(text))
        expected = min((text[: text.index(one)] for one in stop if one in text[:end]), key=len, default=text)
        result, context = write(text, *stop)
        assert "".join(context.chunks) == result.text == expected
        assert not any(one in result.text for one in stop)


def test_texts_in_larger_pieces_are_cut_at_the_first_place() -> None:
    cutter = StopTexts(["xx", "b"])
    assert cutter.add("a xx b") == "a "
    assert cutter.found
    assert cutter.add("more") + cutter.finish() == ""
    plain = StopTexts([])
    assert plain.add("as it comes") == "as it comes"


def test_an_answer_that_follows_a_grammar_has_no_stop_texts() -> None:
    with pytest.raises(ValueError, match="no stop texts"):
        GenerationRequest(Prompt([0]), 5, stop=("a",), grammar=object())  # type: ignore[arg-type]
