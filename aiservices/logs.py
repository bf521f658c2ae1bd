"""Logging: structlog and the standard library through one output, JSON where no one looks, colours on a terminal.

A caller only puts its event in a queue. A thread of its own formats and writes what waits, many lines in one call: a
traceback reads source files, a pipe may be full, and line by line the thread would fight the event loop for the GIL.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, Literal, TextIO, cast

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

LogFormat = Literal["auto", "json", "console"]
Fields = dict[str, Any]
Render = Callable[[Fields], bytes]
Write = Callable[[bytes], object]

MAX_WAITING_RECORDS = 10_000
"""Records that may wait to be written; what finds no room is dropped and counted (``log.dropped``)."""

BATCH_RECORDS = 500
"""So many waiting records wake the writer, and at most so many are written in one call: as JSON, 1 ms of the GIL."""

FLUSH_INTERVAL_S = 0.1
"""How long a line below warning may wait for others to be written with."""

CLOSE_TIMEOUT_S = 2.0
"""How long the process's end waits for a reader that takes no more lines."""

_TELLTALES = ("botocore", "urllib3")  # at debug they write signed requests, and a signature lets in
_JSON = msgspec.json.Encoder()
_JSON_TYPES = frozenset({str, int, float, bool, type(None), datetime})
_RECORD_ATTRIBUTES = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})


def configure_logging(level: str = "info", log_format: LogFormat = "auto") -> None:
    """Set up logging for the process, once, to standard error.

    Loggers made before, as modules do, follow it, unless they were used.

    Args:
        level: the lowest level that is written.
        log_format: ``auto`` writes colours on a terminal and JSON elsewhere.
    """
    json_lines = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(_FromStandardLibrary(_writer))
    root.setLevel(level.upper())
    for name in _TELLTALES:
        logging.getLogger(name).setLevel(max(root.level, logging.INFO))
    _writer.start(render_json if json_lines else _console(), _to(sys.stderr))
    structlog.configure(
        processors=[_stamp],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *name: _writer,
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of one module. Events are short names, data are fields: ``job.finished``, ``seconds=…``.

    Fields are read when the line is written, so a value that may change has to be copied.
    """
    return cast(FilteringBoundLogger, structlog.get_logger(name))


class LogWriter:
    """The queue of records and the thread that writes them. Its methods but ``start`` and ``close`` never wait."""

    def __init__(self) -> None:
        self._records: deque[Fields | logging.LogRecord] = deque()
        self._waiting = threading.Event()
        self._urgent = threading.Event()
        self._dropped = 0
        self._dropped_lock = threading.Lock()
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self, render: Render, write: Write) -> None:
        """Write what comes from now on, and what waits, in this way.

        Args:
            render: makes one line, with its end; ``timestamp`` is a :class:`datetime` in UTC. On the writer's thread.
            write: takes lines; may block, and may raise where they are lost. On the writer's thread.
        """
        self._render, self._write, self._closing = render, write, False
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()

    def put(self, record: Fields | logging.LogRecord) -> None:
        """Queue one record, from any thread; fields have ``event``, ``level`` and ``timestamp`` (seconds, Unix)."""
        waiting = len(self._records)
        if waiting >= MAX_WAITING_RECORDS:
            self._drop(1)
            return
        self._records.append(record)
        if waiting >= BATCH_RECORDS and not self._urgent.is_set():
            self._urgent.set()
        if not self._waiting.is_set():
            self._waiting.set()

    def put_urgent(self, record: Fields | logging.LogRecord) -> None:
        """Queue one record and have it written at once."""
        self.put(record)
        self._urgent.set()

    # structlog calls the method that has the level's name
    debug = info = put
    warning = error = critical = put_urgent

    def close(self) -> None:
        """Write what waits and end the thread, within ``CLOSE_TIMEOUT_S``."""
        self._closing = True
        self._urgent.set()
        self._waiting.set()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _drop(self, count: int) -> None:
        with self._dropped_lock:
            self._dropped += count

    def _run(self) -> None:
        while self._records or not self._closing:
            self._waiting.wait()
            self._urgent.wait(FLUSH_INTERVAL_S)
            # before the records are taken: one that comes meanwhile sets it anew
            self._waiting.clear()
            self._urgent.clear()
            while self._write_batch():
                pass

    def _write_batch(self) -> bool:
        """A function of its own, so that no exception, with the frames behind it, outlives its line."""
        records = [self._records.popleft() for _ in range(min(len(self._records), BATCH_RECORDS))]
        with self._dropped_lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            event = {"count": dropped, "event": "log.dropped", "level": "warning", "timestamp": time.time()}
            records.append(event)
        if not records:
            return False
        try:
            self._write(b"".join(map(self._line, records)))
        except (OSError, ValueError):  # nobody reads, the disk is full, or the stream is closed
            self._drop(len(records) - bool(dropped) + dropped)
        return bool(self._records)

    def _line(self, record: Fields | logging.LogRecord) -> bytes:
        try:
            return self._render(_fields(record))
        except Exception as error:  # somebody's own __repr__, or a format without its values
            event = record.msg if isinstance(record, logging.LogRecord) else record.get("event")
            told = {"of": event if isinstance(event, str) else type(event).__name__, "error": type(error).__name__}
            return self._render({**told, "event": "log.unreadable", "level": "error", "timestamp": datetime.now(UTC)})


_writer = LogWriter()


class _FromStandardLibrary(logging.Handler):
    """Puts the standard library's records in the same queue. Closing it, as ``logging.shutdown`` does, writes them."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def createLock(self) -> None:
        self.lock = None  # the queue needs none, and while the process ends one would hold up the other threads

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self._writer.put_urgent(record)
        else:
            self._writer.put(record)

    def close(self) -> None:
        self._writer.close()
        super().close()


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


def _console() -> Render:
    render = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)

    def line(fields: Fields) -> bytes:
        fields["timestamp"] = fields["timestamp"].isoformat().replace("+00:00", "Z")
        return f"{render(None, '', fields)}\n".encode(errors="backslashreplace")

    return line


def _stamp(logger: LogWriter, level: str, fields: EventDict) -> tuple[tuple[EventDict], dict[str, Any]]:
    """On the caller's thread: add what only it knows. Returns the arguments of the writer's method."""
    if fields.get("exc_info") is True:
        fields["exc_info"] = sys.exc_info()
    fields["level"] = level
    fields["timestamp"] = time.time()
    return (fields,), {}


def _fields(record: Fields | logging.LogRecord) -> Fields:
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


def _to(stream: TextIO) -> Write:
    """Write past the stream's buffer, whose lock the interpreter must not find held when it ends."""
    try:
        descriptor = stream.fileno()
    except OSError:  # a stream in memory
        return lambda data: stream.write(data.decode())
    return lambda data: _write_all(descriptor, data)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # whoever shares the terminal may have made it so
            select.select([], [descriptor], [])
