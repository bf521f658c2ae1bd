from __future__ import annotations

from typing import Annotated, Any, Literal

import attrs
import pytest
from msgspec import Meta

from aiservices.errors import InvalidInput
from aiservices.inputs import read_input


@attrs.frozen
class Order:
    """Every kind of field that a handler may have."""

    text: Annotated[str, Meta(min_length=1, max_length=5)]
    format: Literal["wav", "mp3"] = "wav"
    side: Annotated[Literal["left", "right"] | None, Meta(description="Which.")] = None
    size: Annotated[Literal["s", "m"], Meta(description="How large.")] = "m"
    seed: Annotated[int, Meta(ge=0)] | None = None
    share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    names: Annotated[tuple[Annotated[str, Meta(max_length=3)], ...], Meta(min_length=1, max_length=2)] = ("a",)


@pytest.mark.parametrize(
    ("given", "field", "reason"),
    [
        ({}, "$.text", "this field is required"),
        ({"text": None}, "$.text", "expected str, got null"),
        ({"text": ""}, "$.text", "expected at least 1 character"),
        ({"text": "abcdef"}, "$.text", "expected at most 5 characters"),
        ({"text": ["a"]}, "$.text", "expected str, got array"),
        ({"text": "a", "format": "midi"}, "$.format", "expected one of mp3, wav"),
        ({"text": "a", "side": "top"}, "$.side", "expected one of left, right"),
        ({"text": "a", "size": "xl"}, "$.size", "expected one of m, s"),
        ({"text": "a", "seed": -1}, "$.seed", "expected int >= 0"),
        ({"text": "a", "seed": 1.5}, "$.seed", "expected int | null, got float"),
        ({"text": "a", "seed": "1"}, "$.seed", "expected int | null, got str"),
        ({"text": "a", "share": 2}, "$.share", "expected float <= 1.0"),
        ({"text": "a", "names": []}, "$.names", "expected at least 1 item"),
        ({"text": "a", "names": ["a", "b", "c"]}, "$.names", "expected at most 2 items"),
        ({"text": "a", "names": ["abcd"]}, "$.names[0]", "expected at most 3 characters"),
        ({"text": "a", "sed": 1}, "$.sed", "unknown field; did you mean 'seed'?"),
        (
            {"text": "a", "zzzzzzz": 1},
            "$.zzzzzzz",
            "unknown field; there are: text, format, side, size, seed, share, names",
        ),
    ],
)
def test_an_error_names_the_field_and_what_was_expected(given: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_input(Order, given)
    assert (caught.value.field, caught.value.reason) == (field, reason)


def test_null_is_absent_where_there_is_a_default_and_whole_numbers_are_floats() -> None:
    assert read_input(Order, {"text": "a", "format": None, "names": None, "share": 1}) == Order(text="a", share=1.0)


def test_an_unknown_name_of_any_length_is_refused_shortly() -> None:
    with pytest.raises(InvalidInput, match=r"^\$\.x{100}: unknown field"):
        read_input(Order, {"x" * 5_000_000: 1})
