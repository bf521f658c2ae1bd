"""Applications around the fake handlers, and what many tests of the HTTP transport do with them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer

from aiservices.handler import Handler
from aiservices.registry import Registry
from aiservices.settings import Config, FetchConfig, OutputsConfig, ServerConfig, ServiceConfig
from aiservices.transports.http import create_app
from aiservices.transports.http.lookup import REGISTRY

H = TypeVar("H", bound=Handler[Any, Any])

Client = TestClient[web.Request, web.Application]
MakeClient = Callable[[web.Application | TestServer], Awaitable[Client]]
"""The type of pytest-aiohttp's ``aiohttp_client``."""


def make_app(
    *fakes: type[Handler[Any, Any]],
    server: ServerConfig | None = None,
    outputs: OutputsConfig | None = None,
    fetch: FetchConfig | None = None,
    **settings: Any,
) -> web.Application:
    """Serve each fake handler under its class's name in lower case, with these settings of a service."""
    names = {fake.__name__.lower(): f"{fake.__module__}:{fake.__name__}" for fake in fakes}
    services = {
        name: ServiceConfig(name=name, handler=handler, device="cpu", **{"batch_wait_s": 0.0, **settings})
        for name, handler in names.items()
    }
    # No grace: a test that left a job behind does not wait for it.
    server = server or ServerConfig(grace_s=0.0)
    config = Config(
        server=server,
        outputs=outputs or OutputsConfig(),
        fetch=fetch or FetchConfig(),
        profile="test",
        services=services,
    )
    return create_app(Registry(config))


def handler_of(client: Client, kind: type[H]) -> H:
    """The fake behind the service of its name."""
    assert client.app is not None
    handler = client.app[REGISTRY].get(kind.__name__.lower()).handler
    assert isinstance(handler, kind)
    return handler


async def run(client: Client, service: str, **given: Any) -> str:
    """Submit a job; return its id."""
    answer = await client.post(f"/v2/{service}/run", json={"input": given})
    assert answer.status == 200, await answer.text()
    return str((await answer.json())["id"])


async def ended(client: Client, service: str, job_id: str) -> dict[str, Any]:
    """Wait for a job's end; return its status object."""
    return await read(await client.get(f"/v2/{service}/status-sync/{job_id}"))


async def read(answer: ClientResponse, status: int = 200) -> dict[str, Any]:
    """Check status and type of an answer; return its JSON."""
    shown: dict[str, Any] = await answer.json()
    assert (answer.status, answer.content_type) == (status, "application/json"), shown
    return shown


async def serve(app: web.Application, handler_cancellation: bool) -> TestServer:
    """Run the application as a server does that cancels, or does not, the handlers of callers who hang up."""
    server = TestServer(app)
    await server.start_server()
    assert isinstance(server.handler, web.Server)
    server.handler.handler_cancellation = handler_cancellation
    return server


async def loaded(client: Client) -> None:
    """Wait until every service is READY."""
    assert client.app is not None
    for name in client.app[REGISTRY].services:
        await client.post(f"/v2/{name}/runsync", json={"input": {"action": "warmup"}})


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens on this loop or on a thread."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (there is no event for it)
            await asyncio.sleep(0)


async def wait_until(event: Any) -> None:
    """Wait for a handler's :class:`threading.Event` without blocking the loop."""
    assert await asyncio.to_thread(event.wait, 5)
