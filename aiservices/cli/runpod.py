"""``runpod``: the profile's services as a RunPod serverless worker, until RunPod stops it or a device breaks."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Mapping
from typing import Any

import attrs

from aiservices.cli import Exit
from aiservices.cli.allocator import limit_arenas
from aiservices.cli.settings import read_settings
from aiservices.errors import ConfigError, ServiceError
from aiservices.logs import configure_logging, get_logger
from aiservices.loops import LoopThread
from aiservices.registry import Registry
from aiservices.settings import Config
from aiservices.transports.runpod import RunPodAdapter, Worker, slots

INIT_TIMEOUT_S = 420.0
"""RunPod calls a worker unhealthy that has not begun to take jobs by then; ``RUNPOD_INIT_TIMEOUT`` raises it."""

INIT_RESERVE = 0.95
"""Give up, and say why, before RunPod does and says nothing."""

_NEEDED = ("RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_WEBHOOK_POST_OUTPUT")
_LOG_LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARN", "error": "ERROR"}

log = get_logger(__name__)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Exit:
    """Load the models, then take jobs from RunPod until told to stop."""
    limit_arenas(environ)
    if missing := [name for name in _NEEDED if not environ.get(name)]:
        raise ConfigError(
            f"environment: {missing[0]} is not set, so this is no RunPod serverless worker; use 'serve' elsewhere"
        )
    config = _for_worker(read_settings(options, environ))
    configure_logging(config.server.log_level, config.server.log_format)
    init_timeout_s = _init_timeout_s(environ)
    registry_loop = LoopThread("registry")
    adapter = registry_loop.run_blocking(_build(config))
    try:
        registry_loop.run_blocking(adapter.open(INIT_RESERVE * init_timeout_s))
        _work(adapter, registry_loop, config, options)
    except ServiceError as error:
        log.critical("runpod.not_ready", reason=str(error), limit_s=init_timeout_s)
        raise
    finally:
        registry_loop.run_blocking(adapter.close(config.server.grace_s))
        registry_loop.close()
    return Exit.BROKEN if adapter.registry.broken else Exit.OK


def _work(adapter: RunPodAdapter, registry_loop: LoopThread, config: Config, options: argparse.Namespace) -> None:
    serverless = _import_serverless(config)
    worker = Worker(
        adapter,
        registry_loop,
        slots=options.slots or slots(config),
        grace_s=config.server.grace_s,
        update=serverless.progress_update,
    )
    serverless.start(worker.settings(stream=options.stream))


def _import_serverless(config: Config) -> Any:
    """Import it here only: it takes seconds. Its own log, which shows outputs at DEBUG, follows our level."""
    os.environ.setdefault("RUNPOD_LOG_LEVEL", _LOG_LEVELS[config.server.log_level])
    try:
        return importlib.import_module("runpod.serverless")
    except ImportError as error:
        raise ServiceError(f"the package runpod cannot be imported: {error} (scripts/install --with runpod)") from None


def _for_worker(config: Config) -> Config:
    """Forget results at once: RunPod keeps them."""
    services = {name: attrs.evolve(service, keep_results=0) for name, service in config.services.items()}
    return attrs.evolve(config, services=services)


def _init_timeout_s(environ: Mapping[str, str]) -> float:
    given = environ.get("RUNPOD_INIT_TIMEOUT", "")
    try:
        return float(given or INIT_TIMEOUT_S)
    except ValueError:
        raise ConfigError(f"environment: RUNPOD_INIT_TIMEOUT: expected seconds, got {given!r}") from None


async def _build(config: Config) -> RunPodAdapter:
    """On the loop that the registry will live on."""
    return RunPodAdapter(Registry(config))
