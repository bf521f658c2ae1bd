"""Read the JSON schema that an answer is to follow, as far as its answers can be ended in time."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from aiservices.errors import InvalidInput
from aiservices.handlers.text.json_nodes import Choice, Items, Maybe, Node, Number, Record, Text, or_null, quoted

MAX_DEPTH = 3
"""Objects within each other."""
MAX_PROPERTIES = 32
"""Of all objects together."""
MAX_ITEMS, USUAL_ITEMS = 64, 8
"""Items of an array: most that may be asked for, and most where nothing is said."""
MAX_LENGTH, USUAL_LENGTH = 4000, 400
"""Characters of a string, likewise."""
MAX_CHOICES, MAX_CHOICE_LENGTH = 100, 200
MAX_NAME_LENGTH = 64
MAX_CHARACTERS = 16_000
"""Of all names, choices and descriptions together."""
MAX_VALUES = 128
"""Values that every answer has, an array counted with its fewest items, and one at least."""
SUBSET = (
    "supported are objects (at most 3 within each other, 32 properties in all, each of which is always written), "
    "arrays of anything but arrays (maxItems up to 64), strings (maxLength up to 4000), enum and const of strings, "
    "numbers, integers, booleans, and null beside one of these"
)
"""What a schema may ask for, in the words of every refusal."""

_NOTES = frozenset({"title", "description", "$schema", "$id", "$comment"})
_KEYWORDS: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength"}),
    "number": frozenset(),
    "integer": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
}


def read_schema(schema: Any, field: str = "$.json_schema") -> Record:
    """Read a schema; cheap, whatever it is.

    Args:
        schema: JSON schema of an object.
        field: JSON path of the input field that holds it, for messages.

    Raises:
        InvalidInput: it asks for what is not supported, naming the place.
    """
    root = _Reader().read(schema, field, 0)
    if not isinstance(root, Record):
        _refuse(field, "has to be the schema of an object")
    if (values := _values(root)) > MAX_VALUES:
        _refuse(field, f"asks for at least {values} values; at most {MAX_VALUES} are taken")
    return root


def printable(text: str) -> bool:
    """Whether a text has no control characters, which no string of an answer holds, and no lone surrogates."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


class _Reader:
    """One schema, and how much of it has been read."""

    def __init__(self) -> None:
        self._properties = 0
        self._characters = 0

    def read(self, schema: Any, at: str, depth: int, barred: Collection[str] = ()) -> Node:
        """Read a schema at a JSON path.

        Args:
            schema: that of a value.
            at: its JSON path.
            depth: objects around it.
            barred: of ``array`` and ``union``, what may not stand here.
        """
        if not isinstance(schema, Mapping):
            _refuse(at, "expected a schema, which is an object")
        for union in ("anyOf", "oneOf"):
            if union in schema:
                self._check_keywords(schema, {union}, at)
                return self._union(schema[union], f"{at}.{union}", depth, barred)
        kind, nullable = _kind(schema, at)
        if kind in barred:
            _refuse(at, "an array may not stand in an array directly")
        if "enum" in schema or "const" in schema:
            return self._choice(schema, at, kind, nullable)
        self._check_keywords(schema, {"type", *_KEYWORDS[kind]}, at)
        node = self._node(kind, schema, at, depth)
        return or_null(node) if nullable else node

    def _node(self, kind: str, schema: Mapping[str, Any], at: str, depth: int) -> Node:
        match kind:
            case "object":
                return self._record(schema, at, depth + 1)
            case "array":
                return self._items(schema, at, depth)
            case "string":
                least = _bound(schema, "minLength", 0, 0, 1, at)
                return Text(least, _bound(schema, "maxLength", USUAL_LENGTH, 1, MAX_LENGTH, at))
            case "boolean":
                return Choice((b"true", b"false"))
            case "null":
                _refuse(f"{at}.type", "null stands beside another type only")
        return Number(kind == "integer")

    def _union(self, members: Any, at: str, depth: int, barred: Collection[str]) -> Node:
        several = members if isinstance(members, list) and len(members) == 2 else ()
        nulls = [isinstance(member, Mapping) and member.get("type") == "null" for member in several]
        if nulls.count(True) != 1 or "union" in barred:
            _refuse(at, "expected two schemas, one of them null's")
        null = nulls.index(True)
        self._check_keywords(members[null], {"type"}, f"{at}[{null}]")
        return or_null(self.read(members[1 - null], f"{at}[{1 - null}]", depth, (*barred, "union")))

    def _choice(self, schema: Mapping[str, Any], at: str, kind: str, nullable: bool) -> Choice:
        keyword = "enum" if "enum" in schema else "const"
        self._check_keywords(schema, {"type", keyword}, at)
        at = f"{at}.{keyword}"
        values = schema["enum"] if keyword == "enum" else [schema["const"]]
        if not isinstance(values, list) or not 1 <= len(values) <= MAX_CHOICES:
            _refuse(at, f"expected 1 to {MAX_CHOICES} strings")
        texts = [value for value in values if value is not None]
        for text in texts:
            self._check_text(text, MAX_CHOICE_LENGTH, at)
        if kind not in ("", "string") or not texts:
            _refuse(at, "expected strings")
        if len(set(texts)) < len(texts):
            _refuse(at, "each value may appear only once")
        options = tuple(quoted(text) for text in texts)
        return Choice((*options, b"null") if len(texts) < len(values) and (nullable or not kind) else options)

    def _record(self, schema: Mapping[str, Any], at: str, depth: int) -> Record:
        if depth > MAX_DEPTH:
            _refuse(at, f"objects may stand at most {MAX_DEPTH} deep")
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            _refuse(f"{at}.properties", "expected at least one property")
        self._properties += len(properties)
        if self._properties > MAX_PROPERTIES:
            _refuse(f"{at}.properties", f"more than {MAX_PROPERTIES} properties in all")
        for name in properties:
            self._check_text(name, MAX_NAME_LENGTH, f"{at}.properties")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(one, str) and one in properties for one in required):
            _refuse(f"{at}.required", "expected names of properties")
        if not isinstance(schema.get("additionalProperties", False), bool):
            _refuse(f"{at}.additionalProperties", "expected true or false; there are none in any answer")
        return Record(
            tuple((name, self.read(value, f"{at}.properties.{name}", depth)) for name, value in properties.items())
        )

    def _items(self, schema: Mapping[str, Any], at: str, depth: int) -> Items:
        least = _bound(schema, "minItems", 0, 0, MAX_ITEMS, at)
        most = _bound(schema, "maxItems", max(least, USUAL_ITEMS), max(least, 1), MAX_ITEMS, at)
        return Items(self.read(schema.get("items"), f"{at}.items", depth, ("array",)), least, most)

    def _check_keywords(self, schema: Mapping[str, Any], keywords: Collection[str], at: str) -> None:
        for name, value in schema.items():
            if name in _NOTES and isinstance(value, str):
                self._count(value, f"{at}.{name}")
            elif name not in keywords:
                _refuse(f"{at}.{name[:MAX_NAME_LENGTH]}", "is not supported here")

    def _check_text(self, text: Any, most: int, at: str) -> None:
        if not isinstance(text, str) or not 1 <= len(text) <= most:
            _refuse(at, f"expected strings of 1 to {most} characters")
        if not printable(text):
            _refuse(at, "control characters are not allowed")
        self._count(text, at)

    def _count(self, text: str, at: str) -> None:
        self._characters += len(text)
        if self._characters > MAX_CHARACTERS:
            _refuse(at, f"more than {MAX_CHARACTERS} characters of names, values and descriptions in all")


def _kind(schema: Mapping[str, Any], at: str) -> tuple[str, bool]:
    """The type of a schema, empty for an ``enum`` without one, and whether null is allowed beside it."""
    kinds = schema.get("type")
    if kinds is None and ("enum" in schema or "const" in schema):
        return "", False
    several: list[Any] = kinds if isinstance(kinds, list) else [kinds]
    if not all(isinstance(kind, str) and kind in _KEYWORDS for kind in several):
        _refuse(f"{at}.type", f"expected one of {', '.join(_KEYWORDS)}")
    names = [kind for kind in several if kind != "null"] or ["null"]
    if len(names) > 1 or len(several) > 2:
        _refuse(f"{at}.type", "expected one type, and null beside it at most")
    return names[0], len(several) > 1 and "null" in several


def _bound(schema: Mapping[str, Any], keyword: str, usual: int, least: int, most: int, at: str) -> int:
    value = schema.get(keyword, usual)
    if type(value) is not int or not least <= value <= most:
        _refuse(f"{at}.{keyword}", f"expected a whole number from {least} to {most}")
    return value


def _values(node: Node) -> int:
    match node:
        case Record(fields):
            return sum(_values(value) for _, value in fields)
        case Items(item, least, _):
            return max(least, 1) * _values(item)
        case Maybe(value):
            return _values(value)
    return 1


def _refuse(field: str, reason: str) -> NoReturn:
    raise InvalidInput(field, f"{reason}; {SUBSET}")
