"""``models``: list and remove downloaded models."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aiservices.cli import Exit
from aiservices.cli.printing import columns, print_json
from aiservices.cli.settings import read_settings
from aiservices.errors import ConfigError
from aiservices.storage import CachedModel, ModelStore, readable

HEADING = ("MODEL", "SIZE", "LAST USED", "VERIFIED", "IN USE", "FOLDER")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Exit:
    """Print the table, or remove a model and print how much space that freed."""
    config = read_settings(options, environ)
    store = ModelStore(config)
    if options.action == "rm":
        if options.name is None:
            raise ConfigError("models rm: which one? 'aiservices models' lists them")
        removed = asyncio.run(store.remove(options.name))
        if options.json:
            print_json({"removed": [_shown(model) for model in removed]})
            return Exit.OK
        print(f"{options.name}: {readable(sum(model.bytes for model in removed))} removed")
    elif options.json:
        print_json({"models": [_shown(model) for model in asyncio.run(store.models())]})
    else:
        _print(asyncio.run(store.models()))
    return Exit.OK


def _shown(model: CachedModel) -> dict[str, Any]:
    shown = {key: getattr(model, key) for key in ("name", "bytes", "verified", "in_use")}
    last_used = datetime.fromtimestamp(model.last_used, UTC).isoformat(timespec="seconds")
    return {**shown, "last_used": last_used, "folder": str(model.folder)}


def _print(models: Sequence[CachedModel]) -> None:
    if not models:
        print("no models were downloaded")
        return
    for line in columns([HEADING, *map(_row, models)]):
        print(line)
    print(f"{readable(sum(model.bytes for model in models))} in all")


def _row(model: CachedModel) -> tuple[str, ...]:
    used = datetime.fromtimestamp(model.last_used).strftime("%Y-%m-%d %H:%M")
    in_use = "yes" if model.in_use else "no"
    return model.name, readable(model.bytes), used, model.verified, in_use, str(model.folder)
