"""Logging: structlog and the standard library through one output, JSON where no one looks, colours on a terminal.

A caller only puts its event in a queue. A thread of its own formats and writes what waits, many lines in one call: a
traceback reads source files, a pipe may be full, and line by line the thread would fight the event loop for the GIL.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Literal, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from aiservices.logs.lines import console_renderer, render_json
from aiservices.logs.writer import LogWriter, writing_to

LogFormat = Literal["auto", "json", "console"]

_TELLTALES = ("botocore", "urllib3")  # at debug they write signed requests, and a signature lets in
_writer = LogWriter()


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
    logging.captureWarnings(True)
    for name in _TELLTALES:
        logging.getLogger(name).setLevel(max(root.level, logging.INFO))
    _writer.start(render_json if json_lines else console_renderer(), writing_to(sys.stderr))
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


def _stamp(logger: LogWriter, level: str, fields: EventDict) -> tuple[tuple[EventDict], dict[str, Any]]:
    """On the caller's thread: add what only it knows. Returns the arguments of the writer's method."""
    if fields.get("exc_info") is True:
        fields["exc_info"] = sys.exc_info()
    fields["level"] = level
    fields["timestamp"] = time.time()
    return (fields,), {}
