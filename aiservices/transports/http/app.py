"""Put the application together: routes, middlewares and the registry's life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import msgspec
from aiohttp import web

from aiservices.keys import KeyRing
from aiservices.registry import Registry
from aiservices.transports.http import jobs, openai_speech, process
from aiservices.transports.http.access import add_headers, log_access
from aiservices.transports.http.answers import ANSWERS, AnswerBudget
from aiservices.transports.http.auth import KEYS, check_access, watch_keys
from aiservices.transports.http.bodies import BUDGET, BodyBudget
from aiservices.transports.http.connections import check_room
from aiservices.transports.http.errors import errors_as_json
from aiservices.transports.http.lookup import DOCUMENT, REGISTRY
from aiservices.transports.http.openapi import describe
from aiservices.transports.http.origin import OriginGate


def create_app(registry: Registry, *, starts: bool = True) -> web.Application:
    """Build the application that serves the registry's services.

    It starts, drains and closes the registry: models load behind the first requests. Whoever runs it sets
    ``handler_cancellation`` explicitly and turns aiohttp's own access log off. To let callers poll while jobs drain,
    await ``registry.drain()`` before the runner's ``cleanup()``, which closes the port first.

    Args:
        registry: the services, not started yet.
        starts: whether the application's start is the registry's; if not, whoever runs it starts the registry once the
            port is open, so that callers are told meanwhile that their jobs are being restored.
    """
    server = registry.config.server
    app = web.Application(
        middlewares=[log_access, errors_as_json, check_room],
        handler_args={"auto_decompress": False},  # 4 MB may hold 4 GB, and are inflated on the loop
    )
    app[REGISTRY] = registry
    app[KEYS] = KeyRing(server)
    app[ANSWERS] = AnswerBudget(server.max_answers_bytes)
    app[BUDGET] = BodyBudget(server.max_bodies_bytes)
    registry.metrics.watch_traffic(lambda: app[BUDGET].held_bytes, lambda: app[ANSWERS].held_bytes)
    app[DOCUMENT] = msgspec.json.encode(describe(registry))
    app.on_response_prepare.append(add_headers)
    OriginGate(server).join(app)
    app.middlewares.append(check_access)
    app.cleanup_ctx.append(watch_keys)
    app.cleanup_ctx.append(partial(_run_registry, starts=starts))
    app.on_shutdown.append(_drain_registry)
    app.add_routes(process.routes())
    app.router.add_post(openai_speech.PATH, openai_speech.speech)
    app.add_routes(jobs.routes(single_service=len(registry.services) == 1))
    return app


async def _run_registry(app: web.Application, *, starts: bool) -> AsyncIterator[None]:
    try:
        if starts:
            await app[REGISTRY].start()
        yield
    finally:
        await app[REGISTRY].close()


async def _drain_registry(app: web.Application) -> None:
    registry = app[REGISTRY]
    if not registry.draining:
        await registry.drain(registry.config.server.grace_s)
