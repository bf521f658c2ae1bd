"""``pull``: bring models here before they are needed, as while a container is built."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Mapping

from aiservices.cli import Exit
from aiservices.cli.progress import ProgressLine
from aiservices.cli.settings import read_settings
from aiservices.config import Config, load_config
from aiservices.errors import ConfigError, nearest
from aiservices.logs import configure_logging
from aiservices.storage import ModelStore


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Exit:
    """Fetch one model after the other and say where each lies."""
    config = read_settings(options, environ)
    configure_logging("warning", config.server.log_format)
    asyncio.run(_pull(config, list(_wanted(config, options, environ))))
    return Exit.OK


def _wanted(config: Config, options: argparse.Namespace, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what is shown as the name, and the URI, of every model that is meant.

    Raises:
        ConfigError: nothing bears that name.
    """
    what = options.what
    if what and "://" in what:
        yield what, what
    elif what in config.services:
        yield what, config.services[what].model
    elif what and what not in config.profiles:
        names = [*config.services, *config.profiles]
        raise ConfigError(f"no service, profile or URI {what!r}{nearest(what, names)}")
    else:
        chosen = load_config(options.config, environ, what) if what else config
        yield from ((name, service.model) for name, service in chosen.services.items())


async def _pull(config: Config, wanted: list[tuple[str, str]]) -> None:
    store = ModelStore(config)
    try:
        for name, uri in wanted:
            line = ProgressLine(name, sys.stderr)
            try:
                folder = await store.resolve(uri, line)
            finally:
                line.close()
            print(f"{name}: {folder or 'needs no model'}", flush=True)
    finally:
        await store.close(flush=True)
