"""What ``serve`` says to whoever started it: where to click, how the services come up, when all is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

from aiservices import __version__
from aiservices.cli.settings import server_url, who_may_call
from aiservices.model import ServiceState
from aiservices.registry import Registry
from aiservices.service import Service
from aiservices.settings import Config

Say = Callable[[str], None]

LOOK_EVERY_S = 0.1
"""How often the services' states are looked at until all are known."""

_LOADING = (ServiceState.LOADING, ServiceState.UNLOADING)


def greeting(config: Config, port: int) -> Iterator[str]:
    """The first lines, each URL in one of its own."""
    url = server_url(config.server.host, port)
    yield f"aiservices {__version__}, profile {config.profile}; models are loading, Ctrl-C stops"
    yield f"  {url}/    try the services in a browser"
    yield f"  {url}/openapi.json"
    for name in config.services:
        yield f"  {url}/{name}/api/v1/run"
    if warning := who_may_call(config.server):
        yield f"warning: {warning}"


async def tell_states(registry: Registry, url: str, say: Say) -> None:
    """Say of each service when it is ready or why it is not, and at last how many are.

    A service that loads with its first job is as ready as it can be.
    """
    began = time.monotonic()
    loading = list(registry.services.values())
    while loading:
        for service in [service for service in loading if service.state not in _LOADING]:
            loading.remove(service)
            say(_line(service))
        await asyncio.sleep(LOOK_EVERY_S if loading else 0)
    say(_sum(list(registry.services.values()), f"in {time.monotonic() - began:.1f} s: {url}/"))


def _line(service: Service) -> str:
    match service.state:
        case ServiceState.READY:
            return f"  ready    {service.name}"
        case ServiceState.COLD:
            return f"  ready    {service.name}, which loads its model with the first job"
    return f"  FAILED   {service.name}: {service.reason}"


def _sum(services: Sequence[Service], when_and_where: str) -> str:
    failed = sum(service.state is ServiceState.FAILED for service in services)
    if not failed:
        return f"ready {when_and_where}"
    return f"{len(services) - failed} of {len(services)} services ready {when_and_where}"
