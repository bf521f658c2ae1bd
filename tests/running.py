"""A service around a fake handler while a test runs, and what many tests do with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiservices.handler import Handler
from aiservices.jobs import Job, JobRequest
from aiservices.service import Service
from tests.fakes import make_service

LIMIT_S = 10.0


@asynccontextmanager
async def running(handler: Handler[Any, Any], **settings: Any) -> AsyncIterator[Service]:
    """A started service; its gates are opened at the end."""
    service = make_service(handler, **settings)
    await service.start()
    try:
        yield service
    finally:
        for gate in ("gate", "turn"):
            _open(getattr(handler, gate, None))
        await service.close()


def _open(gate: threading.Event | threading.Semaphore | None) -> None:
    if isinstance(gate, threading.Event):
        gate.set()
    elif gate is not None:
        gate.release(100_000)


def ask(service: Service, text: str, **fields: Any) -> Job:
    settings = {name: fields.pop(name) for name in ("low_priority", "timeout_s", "ttl_s", "webhook") if name in fields}
    return service.submit(JobRequest(input={"text": text, **fields}, **settings))


async def ended(service: Service, *jobs: Job) -> list[str]:
    for job in jobs:
        await job.wait_end(LIMIT_S)
    return [job.status.value for job in jobs]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110  (what is awaited happens on another thread)
            await asyncio.sleep(0)


def output(job: Job) -> Any:
    assert job.output is not None, job.error
    return job.output.as_dict()
