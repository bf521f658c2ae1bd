"""From what a handler gave to a job's output: JSON, with its files beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, get_type_hints

import attrs
import msgspec
from msgspec import Meta

from aiservices.handler import FILE_MARK
from aiservices.jobs import JobOutput, OutputFile

SMALL_VALUES = 200
SMALL_CHARACTERS = 32 * 1024
"""An output of at most so many values and characters is encoded on the event loop: some 20 µs."""


def file_fields(cls: type[Any]) -> tuple[tuple[str, str], ...]:
    """Return the fields of an Output that hold files, and for each the field with its media type."""
    return _file_fields(cls)  # type: ignore[arg-type]  # every class is hashable


@cache
def _file_fields(cls: type[Any]) -> tuple[tuple[str, str], ...]:
    if not attrs.has(cls):
        return ()
    hints = get_type_hints(cls, include_extras=True)
    marks = ((name, meta) for name, kind in hints.items() for meta in getattr(kind, "__metadata__", ()))
    return tuple((n, m.extra[FILE_MARK]) for n, m in marks if isinstance(m, Meta) and m.extra and FILE_MARK in m.extra)


def encode_output(output: Any) -> JobOutput:
    """Encode all but the files. Heavy for a large one.

    Raises:
        TypeError: a field that is marked as a file holds something else than ``bytes``.
    """
    fields = _in_order(output)
    marks = file_fields(type(output))
    if not marks:
        return JobOutput(msgspec.json.encode(fields))
    files = []
    for name, media_type_field in marks:
        if data := getattr(output, name):
            if not isinstance(data, bytes):
                raise TypeError(f"{type(output).__name__}.{name}: expected bytes, got {type(data).__name__}")
            files.append(OutputFile(name, str(fields.get(media_type_field) or "application/octet-stream"), data))
            del fields[name]
    return JobOutput(msgspec.json.encode(fields), tuple(files))


def _in_order(value: Any) -> Any:
    """An attrs class as a mapping of its fields in their order, which msgspec does not keep; what holds some, too."""
    if attrs.has(type(value)):
        fields = ((field.name, getattr(value, field.name)) for field in type(value).__attrs_attrs__)
        return {name: _in_order(one) for name, one in fields if one is not msgspec.UNSET}
    if isinstance(value, list | tuple) and value and attrs.has(type(value[0])):
        return [_in_order(one) for one in value]
    return value


_SCALARS = frozenset({str, bytes, int, float, bool, type(None)})


def is_small(output: Any) -> bool:
    """Whether it has few values and short texts; looks no further than it must."""
    values, count, characters = [output], 0, 0
    while values:
        value = values.pop()
        count += 1
        kind = type(value)
        if kind in _SCALARS:
            characters += len(value) if kind is str or kind is bytes else 0
        else:
            inner = _inner(value)
            count += len(inner)
            characters += len(value) if isinstance(value, str | bytes) else 0  # a class of one's own
            if count <= SMALL_VALUES:
                values.extend(inner)
        if count > SMALL_VALUES or characters > SMALL_CHARACTERS:
            return False
    return True


def _inner(value: Any) -> Collection[Any]:
    """The values directly inside a value."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if attrs.has(type(value)):
        return [getattr(value, field.name) for field in type(value).__attrs_attrs__]
    if isinstance(value, msgspec.Struct):
        return [getattr(value, name) for name in value.__struct_fields__]
    return ()
