"""What the rest of a JSON object costs, and how it is written when tokens run short."""

from __future__ import annotations

from typing import Any

import pytest

from aiservices.handlers.listing import build_schema
from aiservices.handlers.text.json_budget import JsonPlan
from aiservices.handlers.text.json_reader import JsonReader
from aiservices.handlers.text.json_schema import read_schema


def plan_of(schema: Any) -> JsonPlan:
    """Plan with a token for each byte."""
    return JsonPlan(read_schema(schema), len)


def test_a_reader_in_a_hurry_completes_half_characters_and_escapes() -> None:
    plan = plan_of(build_schema(("Other",)))
    for half, rest in ((b"\xe0", b"\xa1\xa1"), (b"\xed\x80", b"\xa1"), (b"\xf0\x9f", b"\xa1\xa1"), (b"\xc3", b"\xa1")):
        reader = JsonReader(plan)
        reader.feed(b'{"title":"a' + half)
        ending, bridge = reader.forced_text(1)
        assert ending == rest
        (half + ending).decode()
        assert bridge == b'","description":"'
    for lead in (0xE0, 0xED, 0xF0, 0xF4):
        reader = JsonReader(plan)
        reader.feed(b'{"title":"' + bytes([lead]))
        (bytes([lead]) + reader.forced_text(1)[0]).decode()
    reader = JsonReader(plan)
    reader.feed(b'{"title":"a\\')
    assert reader.forced_text(1)[0] == b'"'


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "n": {"type": ["number", "null"]},
        "l": {"type": "array", "items": {"type": "object", "properties": {"b": {"type": "boolean"}}}, "maxItems": 3},
        "c": {"enum": ["red", "re", "a, b"]},
        "k": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
    },
}


@pytest.mark.parametrize(
    ("written", "forced"),
    [
        (b'{"', (b'n":',)),
        (b'{"n":', ()),
        (b'{"n":n', (b'ull,"l":[',)),
        (b'{"n":-', (b"1", b',"l":[')),
        (b'{"n":-0.', (b"1", b',"l":[')),
        (b'{"n":12', (b',"l":[',)),
        (b'{"n":1,"l":[', ()),
        (b'{"n":1,"l":[]', (b',"c":',)),
        (b'{"n":1,"l":[{', (b'"b":',)),
        (b'{"n":1,"l":[{"b":t', (b"rue", b'}],"c":')),
        (b'{"n":1,"l":[{"b":true', (b"}",)),
        (b'{"n":1,"l":[{"b":true}', (b'],"c":',)),
        (b'{"n":1,"l":[],"c":"re', (b'"', b',"k":[')),
        (b'{"n":1,"l":[],"c":"red', (b'"', b',"k":[')),
        (b'{"n":1,"l":[],"c":"a', (b', b"', b',"k":[')),
        (b'{"n":1,"l":[],"c":"re","k":[1', (b",",)),
        (b'{"n":1,"l":[],"c":"re","k":[1,2', (b"]}",)),
        (b'{"n":1,"l":[],"c":"re","k":[1,2]}', ()),
    ],
)
def test_a_reader_in_a_hurry_ends_every_kind_of_value(written: bytes, forced: tuple[bytes, ...]) -> None:
    reader = JsonReader(plan_of(SCHEMA))
    reader.feed(written)
    assert reader.forced_text(1) == forced


def test_one_more_item_is_begun_only_if_all_of_it_fits() -> None:
    plan = plan_of(SCHEMA)
    reader = JsonReader(plan)
    reader.feed(b'{"n":1,"l":[{"b":true}')
    text, place = plan.next_item(((plan.first[1][0][0], 1), (reader._place[1][-1][0], 1)))
    enough = 1 + len(text) + plan.cost(place)
    assert reader.forced_text(enough) == ()
    assert reader.forced_text(enough - 1) == (b'],"c":',)
