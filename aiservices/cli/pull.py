"""``pull``: download models before they are needed, as while a container is built."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Mapping

import attrs

from aiservices.cli import Exit
from aiservices.cli.progress import ProgressLine
from aiservices.cli.settings import read_settings
from aiservices.config import load_config
from aiservices.errors import ConfigError, nearest
from aiservices.logs import configure_logging
from aiservices.model import option_folders
from aiservices.registry import load_handler
from aiservices.settings import Config, ServiceConfig
from aiservices.storage import ModelStore


@attrs.frozen
class Wanted:
    """A folder that is to be downloaded.

    Attributes:
        name: what the output calls it.
        option: which option names it; "" for a model.
    """

    name: str
    uri: str
    option: str = ""


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Exit:
    """Download one folder after the other and print where each is."""
    config = read_settings(options, environ)
    configure_logging("warning", config.server.log_format)
    asyncio.run(_pull(config, list(_wanted(config, options, environ))))
    return Exit.OK


def _wanted(config: Config, options: argparse.Namespace, environ: Mapping[str, str]) -> Iterator[Wanted]:
    """Yield every model that is wanted, and the folders beside it that options name.

    Raises:
        ConfigError: nothing has that name, or a handler cannot be imported.
    """
    what = options.what
    if what and "://" in what:
        yield Wanted(what, what)
    elif what in config.services:
        yield from _folders(config.services[what])
    elif what and what not in config.profiles:
        names = [*config.services, *config.profiles]
        raise ConfigError(f"no service, profile or URI {what!r}{nearest(what, names)}")
    else:
        chosen = load_config(options.config, environ, what) if what else config
        for service in chosen.services.values():
            yield from _folders(service)


def _folders(service: ServiceConfig) -> Iterator[Wanted]:
    yield Wanted(service.name, service.model)
    for option, uri in option_folders(service, load_handler(service)).items():
        yield Wanted(f"{service.name} options.{option}", uri, option)


async def _pull(config: Config, wanted: list[Wanted]) -> None:
    store = ModelStore(config)
    try:
        for each in wanted:
            line = ProgressLine(each.name, sys.stderr)
            try:
                folder = await store.resolve(each.uri, line, option=each.option)
            finally:
                line.close()
            print(f"{each.name}: {folder or 'needs no model'}", flush=True)
    finally:
        await store.close(flush=True)
