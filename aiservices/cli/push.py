"""``push``: upload a folder into a bucket, from which ``s3://`` models are downloaded."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from aiservices.cli import Exit
from aiservices.cli.progress import ProgressLine
from aiservices.cli.settings import read_settings
from aiservices.logs import configure_logging
from aiservices.settings import Config
from aiservices.storage import ModelStore


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Exit:
    """Upload the folder and print its URI."""
    config = read_settings(options, environ)
    configure_logging("warning", config.server.log_format)
    print(asyncio.run(_push(config, options.folder, options.uri)))
    return Exit.OK


async def _push(config: Config, folder: Path, uri: str) -> str:
    line = ProgressLine(uri, sys.stderr)
    try:
        return await ModelStore(config).push(folder, uri, line)
    finally:
        line.close()
