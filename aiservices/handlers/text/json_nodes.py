"""The parts that the JSON of an answer is made of, as a grammar and as a schema.

Answers are compact: no space outside strings, and of the escapes only quote and backslash, because the others make
control characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs

_CHARACTER = r'[^"\\\x00-\x1F\x7F]|\\["\\]'
_INTEGER = r"0|-?[1-9][0-9]{0,14}"
"""Below 2**53, so that every reader of JSON gets the same number (RFC 8259, section 6)."""
_NUMBER = r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,6})?"
"""Any of them becomes a whole number by one more digit, wherever it is cut."""


@attrs.frozen(eq=False)
class Text:
    """A string of ``least`` (0 or 1) to ``most`` characters."""

    least: int
    most: int


@attrs.frozen(eq=False)
class Number:
    """A number, whole or with up to six decimals."""

    whole: bool


@attrs.frozen(eq=False)
class Choice:
    """One of some fixed values.

    Attributes:
        options: as JSON; none is the beginning of another.
    """

    options: tuple[bytes, ...]


@attrs.frozen(eq=False)
class Items:
    """An array of ``least`` to ``most`` values; ``most`` is at least 1."""

    item: Node
    least: int
    most: int


@attrs.frozen(eq=False)
class Record:
    """An object.

    Attributes:
        fields: names and values in the order in which they are written, one at least.
    """

    fields: tuple[tuple[str, Node], ...]


@attrs.frozen(eq=False)
class Maybe:
    """A value that is no :class:`Choice`, or null."""

    value: Node


Node = Text | Number | Choice | Items | Record | Maybe


def or_null(node: Node) -> Node:
    """Allow null beside a value."""
    match node:
        case Maybe():
            return node
        case Choice(options):
            return node if b"null" in options else Choice((*options, b"null"))
    return Maybe(node)


def quoted(text: str) -> bytes:
    """Write a text as JSON does."""
    return json.dumps(text, ensure_ascii=False).encode()


def fixed_texts(node: Node) -> Iterator[str]:
    """What an answer holds word for word: names and choices."""
    match node:
        case Choice(options):
            yield from (option.decode() for option in options)
        case Maybe(value) | Items(value, _, _):
            yield from fixed_texts(value)
        case Record(fields):
            for name, value in fields:
                yield name
                yield from fixed_texts(value)


def to_grammar(root: Node) -> str:
    """Write a value as a grammar in llguidance's Lark."""
    rules: list[str] = []

    def expression(node: Node) -> str:
        match node:
            case Text(least, most):
                return f'/"({_CHARACTER}){{{least},{most}}}"/'
            case Number(whole):
                return f"/{_INTEGER if whole else _NUMBER}/"
            case Choice(options):
                return f"({' | '.join(_literal(option.decode()) for option in options)})"
            case Maybe(value):
                return f'({expression(value)} | "null")'
            case Record(fields):
                keys = [_literal(f"{quoted(name).decode()}:") for name, _ in fields]
                pairs = [f"{key} {expression(value)}" for key, (_, value) in zip(keys, fields, strict=True)]
                inside = ' "," '.join(pairs)
                return f'"{{" {inside} "}}"'
            case Items(item, least, most):
                rules.append(expression(item))
                name = f"item{len(rules)}"
                rules[-1] = f"{name}: {rules[-1]}"
                more = f' ("," {name}){{{max(least - 1, 0)},{most - 1}}}' if most > 1 else ""
                return f'"[" {name}{more} "]"' if least else f'"[" ({name}{more})? "]"'

    start = expression(root)
    return "\n".join([f"start: {start}", *rules, ""])


def to_schema(node: Node) -> dict[str, Any]:
    """Write a value as the shortest JSON schema for it, the same for all that mean the same."""
    match node:
        case Text(least, most):
            return {"type": "string", "minLength": least, "maxLength": most}
        case Number(whole):
            return {"type": "integer" if whole else "number"}
        case Choice((b"true", b"false", *null)):
            boolean = {"type": "boolean"}
            return {"anyOf": [boolean, {"type": "null"}]} if null else boolean
        case Choice(options):
            return {"enum": [json.loads(option) for option in options]}
        case Maybe(value):
            return {"anyOf": [to_schema(value), {"type": "null"}]}
        case Items(item, least, most):
            return {"type": "array", "items": to_schema(item), "minItems": least, "maxItems": most}
        case Record(fields):
            return {
                "type": "object",
                "properties": {name: to_schema(value) for name, value in fields},
                "required": [name for name, _ in fields],
                "additionalProperties": False,
            }


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
