"""``services``: what runs in the profile, and which profiles there are."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from aiservices.cli import Exit
from aiservices.cli.printing import columns, print_json
from aiservices.cli.settings import read_settings
from aiservices.config import load_config
from aiservices.settings import Config, ServiceConfig


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Exit:
    """Print both tables."""
    config = read_settings(options, environ)
    others = [load_config(options.config, environ, name) for name in config.profiles]
    if options.json:
        print_json(_document(config, others))
        return Exit.OK
    print(f"profile {config.profile}")
    heading = ("SERVICE", "HANDLER", "MODEL", "DEVICE", "BATCH", "GIB")
    for line in columns([heading, *map(_row, config.services.values())], indent="  "):
        print(line)
    print("\nprofiles")
    for line in columns([_profile_row(other, config.profile) for other in others], indent="  "):
        print(line)
    return Exit.OK


def _document(config: Config, others: Sequence[Config]) -> dict[str, Any]:
    shown = ("name", "handler", "model", "device", "max_batch_size", "memory_gib")
    return {
        "profile": config.profile,
        "services": [{key: getattr(service, key) for key in shown} for service in config.services.values()],
        "profiles": {other.profile: list(other.services) for other in others},
    }


def _row(service: ServiceConfig) -> tuple[str, ...]:
    memory = f"{service.memory_gib:g}" if service.memory_gib else "-"
    return service.name, service.handler, service.model or "-", service.device, str(service.max_batch_size), memory


def _profile_row(config: Config, running: str) -> tuple[str, ...]:
    return ("*" if config.profile == running else " "), config.profile, ", ".join(config.services)
