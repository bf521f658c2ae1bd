"""What the rest of a JSON object costs, and how it is written when tokens run short."""

from __future__ import annotations

import pytest

pytest.importorskip("llguidance", reason="needs llguidance: pip install 'aiservices[mistral]'")
from aiservices.handlers.listing import build_schema
from aiservices.handlers.text.json_budget import JsonPlan, JsonReader, read_fields


def test_only_flat_schemas_that_end_in_a_choice_are_planned() -> None:
    schema = build_schema(("x",))
    swapped = dict(reversed(schema["properties"].items()))
    with pytest.raises(ValueError, match="last field"):
        read_fields({**schema, "properties": swapped})


def test_a_reader_in_a_hurry_completes_half_characters_and_escapes() -> None:
    plan = JsonPlan(read_fields(build_schema(("Other",))), len)
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
