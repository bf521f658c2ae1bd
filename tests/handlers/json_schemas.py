"""Random schemas of the subset that answers are held to, and a judge of answers that knows nothing of our reader."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

jsonschema: Any = pytest.importorskip("jsonschema", reason="comes with schemathesis: pip install 'aiservices[test]'")

Schema = dict[str, Any]

NAMES = ("name", "a", "größe", 'say "hi"', "back\\slash", "price_in_euro", "日本", "x" * 40)
WORDS = ("red", "re", "Home & Kitchen", 'say "hi"', "back\\slash", "日本語", "a, b", "]}", "null")


def random_schema(dice: random.Random) -> Schema:
    """Draw an object of the subset, small enough for an answer of some hundred tokens."""
    return _object(dice, 1)


def _object(dice: random.Random, depth: int) -> Schema:
    names = dice.sample(NAMES, dice.randint(1, 4 if depth == 1 else 2))
    schema: Schema = {"type": "object", "properties": {name: _value(dice, depth) for name in names}}
    if dice.random() < 0.5:
        schema["required"] = dice.sample(names, dice.randint(0, len(names)))
    if dice.random() < 0.5:
        schema["additionalProperties"] = dice.random() < 0.5
    return schema


def _value(dice: random.Random, depth: int, *, in_array: bool = False) -> Schema:
    schema = _plain(dice, depth, in_array)
    if dice.random() < 0.25 and "enum" not in schema and "const" not in schema:
        if dice.random() < 0.5:
            return {"anyOf": dice.sample([schema, {"type": "null"}], 2)}
        return {**schema, "type": [schema["type"], "null"]}
    return schema


def _plain(dice: random.Random, depth: int, in_array: bool) -> Schema:
    kinds = ["string", "text", "number", "integer", "boolean", "enum", "const"]
    kinds += ["array"] * (not in_array) + ["object"] * (depth < 3)
    match dice.choice(kinds):
        case "string":
            return {"type": "string"}
        case "text":
            least = dice.randint(0, 1)
            return {"type": "string", "minLength": least, "maxLength": dice.choice((1, 2, 40, 900))}
        case "enum":
            words: list[str | None] = [*dice.sample(WORDS, dice.randint(1, 4)), *[None] * dice.randint(0, 1)]
            return {"enum": words}
        case "const":
            return {"type": "string", "const": dice.choice(WORDS)}
        case "array":
            least = dice.randint(0, 3)
            bounds = {"minItems": least, "maxItems": dice.randint(max(least, 1), 12)} if dice.random() < 0.7 else {}
            return {"type": "array", "items": _value(dice, depth, in_array=True), **bounds}
        case "object":
            return _object(dice, depth + 1)
        case kind:
            return {"type": kind}


def check(text: str, schema: Mapping[str, Any]) -> None:
    """Assert that a text is JSON that fits a schema, as the jsonschema package sees it, its fields in their order."""
    value = json.loads(text, parse_constant=_no_constant)
    jsonschema.Draft202012Validator(schema).validate(value)
    assert list(value) == list(schema["properties"])


def _no_constant(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")
