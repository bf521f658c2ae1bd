"""How a record becomes a line: JSON or colours. All of it on the writer's thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, cast

import msgspec
import structlog

Fields = dict[str, Any]
Record = Fields | logging.LogRecord
Render = Callable[[Fields], bytes]

_JSON = msgspec.json.Encoder()
_JSON_TYPES = frozenset({str, int, float, bool, type(None), datetime})
_RECORD_ATTRIBUTES = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})


def render(record: Record, how: Render) -> bytes:
    """Return the line of one record, whatever it holds; one that cannot be read is named in a line of its own."""
    try:
        return how(_fields(record))
    except Exception as error:  # somebody's own __repr__, or a format without its values
        event = record.msg if isinstance(record, logging.LogRecord) else record.get("event")
        told = {"of": event if isinstance(event, str) else type(event).__name__, "error": type(error).__name__}
        return how({**told, "event": "log.unreadable", "level": "error", "timestamp": datetime.now(UTC)})


def render_json(fields: Fields) -> bytes:
    """Return one line of JSON; what JSON has no word for becomes its ``repr``."""
    if "exc_info" in fields:
        fields = cast(Fields, structlog.processors.format_exc_info(None, "", fields))
    if not _JSON_TYPES.issuperset(map(type, fields.values())):
        fields = {key: _plain(value) for key, value in fields.items()}
    try:
        return _JSON.encode(fields) + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, as in a file's name that is no UTF-8
        return _JSON.encode({ascii(key)[1:-1]: _encodable(value) for key, value in fields.items()}) + b"\n"


def console_renderer() -> Render:
    """Return what makes lines with colours, and with tracebacks below them."""
    colours = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)

    def line(fields: Fields) -> bytes:
        fields["timestamp"] = fields["timestamp"].isoformat().replace("+00:00", "Z")
        return f"{colours(None, '', fields)}\n".encode(errors="backslashreplace")

    return line


def _fields(record: Record) -> Fields:
    fields = _of_standard_library(record) if isinstance(record, logging.LogRecord) else record
    fields["timestamp"] = datetime.fromtimestamp(fields["timestamp"], UTC)
    return fields


def _of_standard_library(record: logging.LogRecord) -> Fields:
    fields: Fields = {"event": record.getMessage(), "level": record.levelname.lower()}
    fields.update((key, value) for key, value in vars(record).items() if key not in _RECORD_ATTRIBUTES)
    if record.exc_info:
        fields["exc_info"] = record.exc_info
    if record.stack_info:
        fields["stack"] = record.stack_info
    fields["timestamp"] = record.created
    return fields


def _plain(value: Any) -> Any:
    """Spell out what the encoder would refuse, and what it would show whole: fields that ``repr`` keeps secret."""
    if type(value) in _JSON_TYPES:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else repr(value)


def _encodable(value: Any) -> Any:
    try:
        _JSON.encode(value)
    except UnicodeEncodeError:
        return ascii(value)
    return value
