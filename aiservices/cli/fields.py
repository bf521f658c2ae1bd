"""``KEY=VALUE`` words of a command line to the JSON object that a caller would send."""

from __future__ import annotations

import base64
import mimetypes
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from aiservices.errors import InvalidInput

URL_SUFFIXES = ("_url", "_urls")
"""Of fields whose files are sent as data: URLs."""


def read_fields(cls: type[Any], words: Iterable[str]) -> dict[str, Any]:
    """Read every word by the type of its field; what does not fit stays a text, and validation will say so.

    Args:
        cls: the handler's ``Input``.
        words: ``key=value``, or ``key=@file`` (``@-`` is standard input, ``@@`` a plain at sign). A key given twice
            makes a list.

    Raises:
        InvalidInput: a word has no ``=``, or a file cannot be read.
    """
    kinds = get_type_hints(cls)
    payload: dict[str, Any] = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or not key:
            raise InvalidInput(f"$.{word}", "expected KEY=VALUE")
        value = _read_value(key, text, kinds.get(key))
        several = key in payload or key.endswith("_urls")
        payload[key] = [*_as_list(payload.get(key, [])), *_as_list(value)] if several else value
    return payload


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _read_value(key: str, text: str, kind: Any) -> Any:
    if text.startswith("@@"):
        return text[1:]
    if text.startswith("@"):
        content = _read_file(key, text[1:])
        return _data_url(text[1:], content) if key.endswith(URL_SUFFIXES) else _by_type(_decode(key, content), kind)
    return _by_type(text, kind)


def _read_file(key: str, name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise InvalidInput(f"$.{key}", f"{name}: {error.strerror}") from None


def _decode(key: str, content: bytes) -> str:
    try:
        return content.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise InvalidInput(f"$.{key}", "the file is not text in UTF-8") from None


def _data_url(name: str, content: bytes) -> str:
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _by_type(text: str, kind: Any) -> Any:
    """A text as the first of its field's types that takes it."""
    for member in _members(kind):
        if member is str or get_origin(member) is Literal:
            return text
        try:
            if get_origin(member) in (list, tuple, dict):
                return msgspec.json.decode(text)
            return msgspec.convert(text, member, strict=False)
        except (msgspec.ValidationError, msgspec.DecodeError):
            continue
    return text


def _members(kind: Any) -> list[Any]:
    """The types of a union without None, each without its annotations."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [found for member in get_args(kind) for found in _members(member)]
    return [] if kind in (None, type(None)) else [kind]
