"""What the commands share: the settings with the command line over them."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs

from aiservices.config import load_config, settings_path
from aiservices.settings import Config, ServerConfig


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


def server_url(host: str, port: int) -> str:
    """The address at which this machine reaches a server that listens there."""
    shown = "127.0.0.1" if host in ("", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def _import_from(folder: Path) -> None:
    """Find modules in this folder too, after everything else: no file there may stand in for an installed package."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.append(place)


def who_may_call(server: ServerConfig) -> str | None:
    """Warn of a server that others reach without a key; None for one with keys, or of this machine alone."""
    if server.needs_keys or _is_loopback(server.host):
        return None
    return f"whoever reaches {server.host}:{server.port} may call: no keys are set (AISERVICES_API_KEYS)"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
