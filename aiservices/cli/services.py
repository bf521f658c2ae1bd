"""``services``: what runs in the profile, and which profiles there are."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from aiservices.cli import Exit
from aiservices.cli.settings import columns, read_settings
from aiservices.config import load_config
from aiservices.settings import Config, ServiceConfig


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Exit:
    """Print both tables."""
    config = read_settings(options, environ)
    print(f"profile {config.profile}")
    heading = ("SERVICE", "HANDLER", "MODEL", "DEVICE", "BATCH", "GIB")
    for line in columns([heading, *map(_row, config.services.values())], indent="  "):
        print(line)
    print("\nprofiles")
    others = [load_config(options.config, environ, name) for name in config.profiles]
    for line in columns([_profile_row(other, config.profile) for other in others], indent="  "):
        print(line)
    return Exit.OK


def _row(service: ServiceConfig) -> tuple[str, ...]:
    memory = f"{service.memory_gib:g}" if service.memory_gib else "-"
    return service.name, service.handler, service.model or "-", service.device, str(service.max_batch_size), memory


def _profile_row(config: Config, running: str) -> tuple[str, ...]:
    return ("*" if config.profile == running else " "), config.profile, ", ".join(config.services)
