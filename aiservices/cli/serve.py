"""``serve``: the HTTP transport over the profile's services, until a signal or a broken device ends it."""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
from aiohttp import web

from aiservices import loops
from aiservices.cli import Exit, leaving
from aiservices.cli.allocator import limit_arenas
from aiservices.cli.greeting import Say, greeting, tell_states
from aiservices.cli.settings import read_settings, server_url
from aiservices.errors import ConfigError, ServiceError
from aiservices.journal import Journal
from aiservices.logs import configure_logging, get_logger
from aiservices.registry import Registry
from aiservices.settings import Config
from aiservices.transports.http import create_app
from aiservices.transports.http.connections import Runner, raise_file_limit

CLOSE_TIMEOUT_S = 5.0
"""How long open connections may go on once every job has ended."""

LINGER_S = 2.0
"""How long the port stays open after a drain that ended jobs: their callers poll once more for the results."""

Leave = Callable[[int], None]

log = get_logger(__name__)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Exit:
    """Serve until told to stop."""
    limit_arenas(environ)
    config = read_settings(options, environ)
    ports = read_ports(environ)
    if "PORT" in ports and options.port is None and not environ.get("AISERVICES_PORT"):
        config = attrs.evolve(config, server=attrs.evolve(config.server, port=ports["PORT"]))
    configure_logging(config.server.log_level, config.server.log_format)
    work = serve(
        config,
        say=lambda line: print(line, flush=True),
        health_port=ports.get("PORT_HEALTH"),
        journal=make_journal(config),
    )
    return loops.run(work)


def read_ports(environ: Mapping[str, str]) -> dict[str, int]:
    """Read what RunPod's load balancer sets: where requests come to, and where it asks ``/ping``.

    Source: https://docs.runpod.io/serverless/load-balancing/overview.

    Raises:
        ConfigError: not a port.
    """
    given = {name: environ[name] for name in ("PORT", "PORT_HEALTH") if environ.get(name)}
    for name, text in given.items():
        if not text.isdecimal() or not 0 < int(text) <= 65535:
            raise ConfigError(f"environment: {name}: expected a port from 1 to 65535, got {text!r}")
    return {name: int(text) for name, text in given.items()}


def journal_path(config: Config) -> Path | None:
    """Where accepted jobs are written; None where they end with the process."""
    given = config.journal.path
    if given in ("", "off"):
        return None
    beside = config.server.model_dir.parent / "data" / f"jobs-{config.profile}.db"
    return beside if given == "auto" else Path(given)


def make_journal(config: Config) -> Journal | None:
    """Build the journal, not opened yet.

    Raises:
        ConfigError: its key has the wrong form.
    """
    path = journal_path(config)
    if path is None:
        return None
    return Journal(path, sync=config.journal.sync, secret_key=config.journal.key or None)


async def serve(
    config: Config,
    *,
    say: Say,
    leave: Leave | None = None,
    health_port: int | None = None,
    journal: Journal | None = None,
) -> Exit:
    """Serve until SIGTERM, SIGINT or a broken device.

    The first signal drains: new jobs are refused, running ones may end within ``grace_s``, and callers can poll
    meanwhile. The second leaves at once.

    Args:
        config: all settings.
        say: prints one line; every URL has its own.
        leave: ends the process at once; stands in for :func:`os._exit` in tests.
        journal: keeps accepted jobs beyond the process; None: memory alone does.
        health_port: where the same is served once more, for probes that have a port of their own.

    Raises:
        ServiceError: a handler cannot be imported, the address not listened on, or the journal not opened.
    """
    sockets = bind(config.server.host, config.server.port)
    if health_port is not None and health_port != config.server.port:
        sockets += bind(config.server.host, health_port)
    registry = Registry(config, journal=journal)
    runner = _runner(registry)
    stop = _Stop(leave or leaving.leave)
    try:
        await runner.setup()
        for each in sockets:
            await web.SockSite(runner, each).start()
        port = sockets[0].getsockname()[1]
        log.info("server.listening", host=config.server.host, port=port)
        await registry.start()
        for line in greeting(config, port):
            say(line)
        await _serve_until_stopped(registry, stop, server_url(config.server.host, port), say)
        await _drain(registry)
    finally:
        await runner.cleanup()
        stop.close()
    return Exit.BROKEN if registry.broken else Exit.OK


async def _serve_until_stopped(registry: Registry, stop: _Stop, url: str, say: Say) -> None:
    telling = asyncio.create_task(tell_states(registry, url, say))
    await _first(stop.asked, registry.broken_event)
    telling.cancel()
    stop.asked.set()  # from here on a signal is the second one


async def _drain(registry: Registry) -> None:
    """Let running jobs end, and their callers ask once more."""
    log.info("server.draining", broken=registry.broken, grace_s=registry.config.server.grace_s)
    busy = registry.busy
    await registry.drain(registry.config.server.grace_s)
    if busy or registry.broken:
        await asyncio.sleep(LINGER_S)


def _runner(registry: Registry) -> Runner:
    server = registry.config.server
    # A caller that hangs up must not cancel what its request began: jobs end through their own ways only.
    return Runner(
        create_app(registry, starts=False),
        attrs.evolve(server, max_connections=raise_file_limit(server.max_connections)),
        handler_cancellation=False,
        access_log=None,
        shutdown_timeout=CLOSE_TIMEOUT_S,
    )


def bind(host: str, port: int) -> list[socket.socket]:
    """Reserve the address before anything is built; connections are refused until the server listens.

    Raises:
        ServiceError: the address is taken, or not ours.
    """
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sockets.append(bound := socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # 0.0.0.0 has a socket of its own
            bound.bind(address)
            if port == 0:
                break  # the next family would get another free port
    except OSError as error:
        for each in sockets:
            each.close()
        hint = "; stop what listens there or choose another with --port" if "in use" in str(error) else ""
        raise ServiceError(f"cannot listen on {host}:{port}: {error.strerror}{hint}") from None
    return sockets


async def _first(*events: asyncio.Event) -> None:
    """Wait for any of these."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


class _Stop:
    """The two signals: the first asks, the second leaves."""

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, leave: Leave) -> None:
        self.asked = asyncio.Event()
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        for number in self.signals:
            self._loop.add_signal_handler(number, self._on_signal, number)

    def close(self) -> None:
        """Take the handlers away again."""
        for number in self.signals:
            self._loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.asked.is_set():
            log.warning("server.left_at_once", signal=number.name)
            self._leave(128 + number)
        self.asked.set()
