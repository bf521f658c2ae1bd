"""Logging: structlog and the standard library through one formatter, JSON where no one looks, colours on a terminal."""

from __future__ import annotations

import logging
import logging.config
import sys
from typing import Literal, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

LogFormat = Literal["auto", "json", "console"]


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
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
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


def _renderer(json_lines: bool) -> list[Processor]:
    if json_lines:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [structlog.dev.ConsoleRenderer()]
