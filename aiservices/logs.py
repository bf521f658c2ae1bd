"""Logging: structlog and the standard library through one formatter, JSON where no one looks, colours on a terminal.

Records are formatted and written on a thread of their own: a traceback reads source files and a pipe may be full, and
neither may hold up the event loop.
"""

from __future__ import annotations

import atexit
import logging
import logging.handlers
import queue
import sys
from typing import Literal, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

LogFormat = Literal["auto", "json", "console"]

_TELLTALES = ("botocore", "urllib3")  # at debug they write signed requests, and a signature lets in


def configure_logging(level: str = "info", log_format: LogFormat = "auto") -> None:
    """Set up logging for the process, once, to standard error.

    Args:
        level: the lowest level that is written.
        log_format: ``auto`` writes colours on a terminal and JSON elsewhere.
    """
    json_lines = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderer(json_lines)],
        )
    )
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(records, handler)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(_Unformatted(records, listener))
    root.setLevel(level.upper())
    for name in _TELLTALES:
        logging.getLogger(name).setLevel(max(root.level, logging.INFO))
    listener.start()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of one module. Events are short names, data are fields: ``job.finished``, ``seconds=…``."""
    return cast(FilteringBoundLogger, structlog.get_logger(name))


class _Unformatted(logging.handlers.QueueHandler):
    """Hands records over as they are; the listener's formatter does all the work. Closing it writes what is left."""

    def __init__(self, records: queue.SimpleQueue[logging.LogRecord], listener: logging.handlers.QueueListener) -> None:
        super().__init__(records)
        self._listener = listener
        atexit.register(self.close)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def close(self) -> None:
        atexit.unregister(self.close)
        if self._listener._thread is not None:  # stop() of one that has stopped raises in 3.11
            self._listener.stop()
        super().close()


def _renderer(json_lines: bool) -> list[Processor]:
    if json_lines:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
