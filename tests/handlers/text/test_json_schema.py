"""Which schemas are taken, and how those that are not are refused: at once, naming the place."""

from __future__ import annotations

import time
from typing import Any

import pytest

from aiservices.errors import InvalidInput
from aiservices.handlers.text.json_nodes import to_grammar, to_schema
from aiservices.handlers.text.json_schema import MAX_VALUES, read_schema


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def deep(levels: int, innermost: Any) -> dict[str, Any]:
    return innermost if not levels else of(inner=deep(levels - 1, innermost))


STRING = {"type": "string"}
MANY = of(**{f"x{n}": STRING for n in range(15)})
NESTED_UNION: Any = STRING
for _ in range(900):
    NESTED_UNION = {"anyOf": [NESTED_UNION, {"type": "null"}]}
NESTED_ARRAY: Any = STRING
for _ in range(900):
    NESTED_ARRAY = {"type": "array", "items": NESTED_ARRAY}

REFUSED: list[tuple[Any, str]] = [
    (STRING, "$.json_schema: has to be the schema of an object"),
    ({**of(x=STRING), "type": ["object", "null"]}, "$.json_schema: has to be the schema of an object"),
    ({}, "$.json_schema.type: expected one of object, array, string, number, integer, boolean, null"),
    ({"type": "object"}, "$.json_schema.properties: expected at least one property"),
    (of(), "$.json_schema.properties: expected at least one property"),
    ({"$ref": "#/$defs/x"}, "$.json_schema.type: expected one of"),
    ({**of(x=STRING), "$defs": {}}, "$.json_schema.$defs: is not supported here"),
    (of(x={"$ref": "#"}), "$.json_schema.properties.x.type: expected one of"),
    (of(x={**STRING, "pattern": "a+"}), "$.json_schema.properties.x.pattern: is not supported here"),
    (of(x={**STRING, "format": "date"}), "$.json_schema.properties.x.format: is not supported here"),
    (of(x={"type": "integer", "minimum": 3}), "$.json_schema.properties.x.minimum: is not supported here"),
    (
        of(x={**STRING, "maxLength": 4001}),
        "$.json_schema.properties.x.maxLength: expected a whole number from 1 to",
    ),
    (of(x={**STRING, "maxLength": True}), "$.json_schema.properties.x.maxLength: expected a whole number"),
    (of(x={**STRING, "minLength": 2}), "$.json_schema.properties.x.minLength: expected a whole number from 0 to 1"),
    (of(x={"type": "null"}), "$.json_schema.properties.x.type: null stands beside another type only"),
    (of(x={"type": ["string", "number"]}), "$.json_schema.properties.x.type: expected one type, and null beside it"),
    (of(x={"type": []}), "$.json_schema.properties.x.type: null stands beside another type only"),
    (of(x={"type": "date"}), "$.json_schema.properties.x.type: expected one of"),
    (of(x={"type": [{}]}), "$.json_schema.properties.x.type: expected one of"),
    (of(x=True), "$.json_schema.properties.x: expected a schema, which is an object"),
    (of(x={"anyOf": [STRING, {"type": "number"}]}), "$.json_schema.properties.x.anyOf: expected two schemas, one of"),
    (of(x={"anyOf": [STRING]}), "$.json_schema.properties.x.anyOf: expected two schemas, one of them null's"),
    (of(x={"anyOf": STRING}), "$.json_schema.properties.x.anyOf: expected two schemas"),
    (
        of(x={"oneOf": [{"type": "null"}, {"type": "date"}]}),
        "$.json_schema.properties.x.oneOf[1].type: expected one",
    ),
    (
        of(x={"anyOf": [STRING, {"type": "null"}], "type": "string"}),
        "$.json_schema.properties.x.type: is not supported",
    ),
    (of(x=NESTED_UNION), "$.json_schema.properties.x.anyOf[0].anyOf: expected two schemas"),
    (of(x={"allOf": [STRING]}), "$.json_schema.properties.x.type: expected one of"),
    (of(x={"enum": []}), "$.json_schema.properties.x.enum: expected 1 to 100 strings"),
    (of(x={"enum": ["a"] * 101}), "$.json_schema.properties.x.enum: expected 1 to 100 strings"),
    (of(x={"enum": [1]}), "$.json_schema.properties.x.enum: expected strings of 1 to 200 characters"),
    (of(x={"enum": [""]}), "$.json_schema.properties.x.enum: expected strings of 1 to 200 characters"),
    (of(x={"enum": ["a", "a"]}), "$.json_schema.properties.x.enum: each value may appear only once"),
    (of(x={"enum": ["a\n"]}), "$.json_schema.properties.x.enum: control characters are not allowed"),
    (of(x={"enum": [None]}), "$.json_schema.properties.x.enum: expected strings"),
    (of(x={"const": 5}), "$.json_schema.properties.x.const: expected strings"),
    (of(x={"type": "integer", "enum": ["a"]}), "$.json_schema.properties.x.enum: expected strings"),
    (of(x={"enum": ["a"], "const": "a"}), "$.json_schema.properties.x.const: is not supported here"),
    (of(x={"type": "array"}), "$.json_schema.properties.x.items: expected a schema, which is an object"),
    (of(x={"type": "array", "items": [STRING]}), "$.json_schema.properties.x.items: expected a schema"),
    (of(x={"type": "array", "items": STRING, "maxItems": 65}), "$.json_schema.properties.x.maxItems: expected a whole"),
    (of(x={"type": "array", "items": STRING, "maxItems": 0}), "$.json_schema.properties.x.maxItems: expected a whole"),
    (
        of(x={"type": "array", "items": STRING, "minItems": 4, "maxItems": 3}),
        "$.json_schema.properties.x.maxItems: expected a whole number from 4 to 64",
    ),
    (of(x={"type": "array", "items": STRING, "uniqueItems": True}), "$.json_schema.properties.x.uniqueItems: is not"),
    (of(x=NESTED_ARRAY), "$.json_schema.properties.x.items: an array may not stand in an array directly"),
    (
        of(x={"type": "array", "items": {"anyOf": [{"type": "array", "items": STRING}, {"type": "null"}]}}),
        "$.json_schema.properties.x.items.anyOf[0]: an array may not stand in an array directly",
    ),
    (
        deep(3, of(x=STRING)),
        "$.json_schema.properties.inner.properties.inner.properties.inner: objects may stand",
    ),
    (of(**{f"x{n}": STRING for n in range(33)}), "$.json_schema.properties: more than 32 properties in all"),
    (
        of(a=of(**{f"x{n}": STRING for n in range(20)}), b=of(**{f"x{n}": STRING for n in range(20)})),
        "$.json_schema.pro",
    ),
    (of(**{"": STRING}), "$.json_schema.properties: expected strings of 1 to 64 characters"),
    (of(**{"x" * 65: STRING}), "$.json_schema.properties: expected strings of 1 to 64 characters"),
    (of(**{"a\x00": STRING}), "$.json_schema.properties: control characters are not allowed"),
    (of(**{"\ud800": STRING}), "$.json_schema.properties: control characters are not allowed"),
    ({**of(x=STRING), "required": ["y"]}, "$.json_schema.required: expected names of properties"),
    ({**of(x=STRING), "required": "x"}, "$.json_schema.required: expected names of properties"),
    ({**of(x=STRING), "additionalProperties": STRING}, "$.json_schema.additionalProperties: expected true or false"),
    ({**of(x=STRING), "description": 5}, "$.json_schema.description: is not supported here"),
    (of(x={**STRING, "description": "x" * 16_000}), "$.json_schema.properties.x.description: more than 16000 charact"),
    (
        of(x={"type": "array", "minItems": 20, "items": of(y={"type": "array", "minItems": 20, "items": STRING})}),
        f"$.json_schema: asks for at least 400 values; at most {MAX_VALUES} are taken",
    ),
]


@pytest.mark.parametrize(("schema", "message"), REFUSED, ids=[message[13:60] for _, message in REFUSED])
def test_what_is_not_supported_is_named_with_what_is(schema: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_schema(schema)
    assert str(refused.value).startswith(message)
    assert "supported are objects (at most 3 within each other" in str(refused.value)


@pytest.mark.parametrize(
    ("schema", "canonical"),
    [
        (STRING, {"type": "string", "minLength": 0, "maxLength": 400}),
        ({"type": "string", "title": "X", "description": "Any."}, {"type": "string", "minLength": 0, "maxLength": 400}),
        ({"type": ["null", "integer"]}, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        ({"oneOf": [{"type": "null"}, {"type": "number"}]}, {"anyOf": [{"type": "number"}, {"type": "null"}]}),
        ({"type": ["boolean", "null"]}, {"anyOf": [{"type": "boolean"}, {"type": "null"}]}),
        ({"enum": ["a", None]}, {"enum": ["a", None]}),
        ({"type": "string", "enum": ["a", None]}, {"enum": ["a"]}),
        ({"type": ["string", "null"], "enum": ["a"]}, {"enum": ["a"]}),
        ({"const": "a"}, {"enum": ["a"]}),
        (
            {"type": "array", "items": {"const": "a"}},
            {"type": "array", "items": {"enum": ["a"]}, "minItems": 0, "maxItems": 8},
        ),
    ],
)
def test_schemas_that_mean_the_same_become_the_same(schema: Any, canonical: Any) -> None:
    written = to_schema(read_schema(of(x=schema)))
    assert written["properties"]["x"] == canonical
    assert to_schema(read_schema(written)) == written
    assert written["required"] == ["x"]
    assert written["additionalProperties"] is False


def test_the_largest_schemas_compile_in_no_time() -> None:
    pytest.importorskip("llguidance", reason="needs llguidance: pip install 'aiservices[mistral]'")
    from aiservices.handlers.text.grammar import Grammar
    from aiservices.handlers.text.json_tokens import read_tokenizer
    from tests.handlers.tiny_models import MISTRAL_TOKENS, byte_tokenizer

    tokenizer = byte_tokenizer(MISTRAL_TOKENS)
    tokens = read_tokenizer(tokenizer, tokenizer.get_vocab_size(), [2])
    name = "x" * 60
    long = {"type": ["string", "null"], "maxLength": 4000}
    many = {"type": "array", "minItems": 4, "maxItems": 64}
    schemas = [
        of(**{f"{name}{n}": long for n in range(32)}),
        of(a={**many, "items": of(b={**many, "items": of(**{f"{name}{n}": long for n in range(8)})})}),
        of(**{f"x{n}": {"enum": [f"{word}{'y' * 35}" for word in range(100)]} for n in range(4)}),
        of(a={**many, "items": of(b={**many, "items": of(c={**many, "minItems": 8, "items": long})})}),
    ]
    for schema in schemas:
        started_s = time.process_time()
        grammar = Grammar.compile(schema, tokens)
        assert grammar.least_tokens > 100
        assert len(to_grammar(read_schema(schema))) < 100_000
        assert time.process_time() - started_s < 5, "some 50 ms on a quiet machine"
