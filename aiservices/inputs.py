"""A caller's JSON to a handler's ``Input``, with errors that name the field and say what was expected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import attrs
import msgspec

from aiservices.errors import InvalidInput, nearest

T = TypeVar("T")

SHOWN_NAME_LENGTH = 100
"""An unknown name is compared and shown up to here: it may be as long as a body."""

_PLACE = re.compile(r"^(?P<reason>.*?)(?: - at `(?P<field>\$[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]+)`$")
_LENGTH = re.compile(r"^Expected `(?P<kind>str|array|bytes)` of length (?P<bound>>=|<=|==) (?P<count>\d+)$")
_BOUNDS = {">=": "at least", "<=": "at most", "==": "exactly"}
_UNITS = {"str": "character", "array": "item", "bytes": "byte"}


def read_input(cls: type[T], payload: Mapping[str, Any]) -> T:
    """Build an attrs class from a caller's JSON object.

    A ``null`` counts as absent where the field has a default: clients in languages with optional fields send it so.

    Raises:
        InvalidInput: a field is unknown, missing, of a wrong type or out of its bounds.
    """
    fields = attrs.fields_dict(cls)  # type: ignore[arg-type]  # the registry admits attrs classes only
    for name in payload:
        if name not in fields:
            shown = name[:SHOWN_NAME_LENGTH]
            raise InvalidInput(f"$.{shown}", f"unknown field{nearest(shown, fields)}")
    given = {
        name: value for name, value in payload.items() if value is not None or fields[name].default is attrs.NOTHING
    }
    try:
        return msgspec.convert(given, cls)
    except msgspec.ValidationError as error:
        raise explain(cls, str(error)) from None


def explain(cls: type[Any], message: str) -> InvalidInput:
    """Turn a validation message of msgspec's into ours: ``$.text: expected at least 1 character``."""
    place = _PLACE.match(message)
    assert place is not None
    reason, field = place["reason"], place["field"] or "$"
    if missing := _MISSING.match(reason):
        return InvalidInput(f"{field}.{missing['name']}", "this field is required")
    if length := _LENGTH.match(reason):
        count, unit = int(length["count"]), _UNITS[length["kind"]]
        return InvalidInput(field, f"expected {_BOUNDS[length['bound']]} {count} {unit}{'s' * (count != 1)}")
    if reason.startswith("Invalid enum value"):
        return InvalidInput(field, f"expected one of {', '.join(_choices(cls, field))}")
    reason = reason.replace("`", "")
    return InvalidInput(field, reason[:1].lower() + reason[1:])


def _choices(cls: type[Any], field: str) -> list[str]:
    """The values that a field of literals takes; those of the whole class's field for a nested path."""
    kind = msgspec.inspect.type_info(cls)
    assert isinstance(kind, msgspec.inspect.DataclassType)
    name = re.split(r"[.\[]", field.removeprefix("$."))[0]
    found = next((entry.type for entry in kind.fields if entry.encode_name == name), None)
    return [str(value) for value in _literals(found)]


def _literals(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, msgspec.inspect.Metadata):  # a description or examples around the type
        return _literals(kind.type)
    if isinstance(kind, msgspec.inspect.LiteralType):
        return kind.values
    if isinstance(kind, msgspec.inspect.UnionType):
        return tuple(value for member in kind.types for value in _literals(member))
    return ()
