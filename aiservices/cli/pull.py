"""``pull``: bring the models of a profile here before they are needed, as while a container is built."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping

from aiservices.cli import Exit
from aiservices.cli.settings import read_settings
from aiservices.config import Config
from aiservices.storage import ModelStore


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Exit:
    """Fetch one model after the other and say where each lies."""
    asyncio.run(_pull(read_settings(options, environ)))
    return Exit.OK


async def _pull(config: Config) -> None:
    store = ModelStore(config)
    for service in config.services.values():
        folder = await store.resolve(service.model)
        print(f"{service.name}: {folder or 'needs no model'}", flush=True)
