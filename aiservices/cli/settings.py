"""What the commands share: the settings with the command line over them, and columns of text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from aiservices.config import load_config, settings_path
from aiservices.settings import Config


def read_settings(options: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """Load the settings that the command line names; handlers in files beside them can be imported from now on.

    Raises:
        ConfigError: something in them is wrong.
    """
    config = load_config(options.config, environ, options.profile)
    given = {key: getattr(options, key, None) for key in ("host", "port")}
    server = attrs.evolve(config.server, **{key: value for key, value in given.items() if value is not None})
    _import_from(settings_path(options.config, environ).parent)
    return attrs.evolve(config, server=server)


def _import_from(folder: Path) -> None:
    """Find modules in this folder too, after everything else: no file there may stand in for an installed package."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.append(place)


def columns(rows: Iterable[Sequence[str]], indent: str = "") -> Iterator[str]:
    """Lay rows of equal length out in columns as wide as their widest cell."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield (indent + "  ".join(cells)).rstrip()
