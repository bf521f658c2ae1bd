"""The two ways to read a job's stream: RunPod's polls, and server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from aiservices.jobs import Job
from aiservices.jobs.output import ON_LOOP_BYTES, encode_status
from aiservices.service import Service

HEARTBEAT_S = 15.0
"""A comment this often keeps proxies from closing a quiet connection."""


async def poll(job: Job, timeout_s: float) -> bytes:
    """Wait for a chunk or the end; take every chunk there is. Returns the answer as JSON.

    Raises:
        StreamEnded: an earlier reader was told that the job was cancelled.
    """
    await job.wait_news(timeout_s)
    await _wait_end_recorded(job)
    job.check_stream()
    size_bytes = job.stream.size_bytes
    shown = {"stream": [{"output": chunk} for chunk in job.read_stream()], "status": job.status}
    if size_bytes <= ON_LOOP_BYTES:
        return msgspec.json.encode(shown)
    return await asyncio.to_thread(msgspec.json.encode, shown)


async def send_events(request: web.Request, service: Service, job: Job) -> web.StreamResponse:
    """Send an ``output`` event for each chunk as it comes and one ``status`` event at the end of the job.

    It lasts as long as the job, which ``ttl`` and ``executionTimeout`` bound. The format is that of
    https://html.spec.whatwg.org/multipage/server-sent-events.html.

    Raises:
        StreamEnded: an earlier reader was told that the job was cancelled.
    """
    job.check_stream()
    over, chunks = job.stage.over, job.read_stream()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    await response.prepare(request)
    try:
        while not over:
            if chunks:
                await response.write(await asyncio.to_thread(_events, chunks))
            await job.wait_news(HEARTBEAT_S)
            over, chunks = job.stage.over, job.read_stream()
            if not (chunks or over):
                await response.write(b": waiting\n\n")
        await _wait_end_recorded(job)
        last = _event("status", await encode_status(service.status(job), job.output))
        await response.write(await asyncio.to_thread(_events, chunks) + last)
    except ConnectionError:
        pass  # the reader went away; the job goes on
    return response


async def _wait_end_recorded(job: Job) -> None:
    """What a reader was told of an end holds after a crash."""
    if job.ended:
        await job.wait_recorded()


def _events(chunks: Sequence[Any]) -> bytes:
    return b"".join(_event("output", msgspec.json.encode(chunk)) for chunk in chunks)


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
