"""The two ways to read a job's stream: RunPod's polls, and server-sent events."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from aiservices.jobs import Job, JobStatus
from aiservices.service import Service
from aiservices.transports.http.errors import StreamEnded

HEARTBEAT_S = 15.0
"""A comment this often keeps proxies from closing a quiet connection."""


async def poll(service: Service, job: Job, timeout_s: float) -> dict[str, Any]:
    """Wait for a chunk or the end; take every chunk there is.

    Raises:
        StreamEnded: an earlier reader was told that the job was cancelled.
    """
    _refuse_if_told(job)
    await service.wait_change(job, timeout_s)
    _refuse_if_told(job)
    chunks = [{"output": chunk} for chunk in job.take_chunks()]
    _note_told(job)
    return {"status": job.status, "stream": chunks}


async def send_events(request: web.Request, service: Service, job: Job) -> web.StreamResponse:
    """Send an ``output`` event for each chunk as it comes and one ``status`` event at the end of the job.

    It lasts as long as the job, which ``ttl`` and ``executionTimeout`` bound. The format is that of
    https://html.spec.whatwg.org/multipage/server-sent-events.html.
    """
    _refuse_if_told(job)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    await response.prepare(request)
    try:
        while not job.ended:
            await service.wait_change(job, HEARTBEAT_S)
            await response.write(_output_events(job) or b": waiting\n\n")
        await response.write(_output_events(job) + _event("status", msgspec.json.encode(service.status(job))))
    except ConnectionError:
        return response  # the reader went away; the job goes on
    _note_told(job)
    return response


def _output_events(job: Job) -> bytes:
    return b"".join(_event("output", bytes(chunk)) for chunk in job.take_chunks())


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def _refuse_if_told(job: Job) -> None:
    if job.status is JobStatus.CANCELLED and job.delivered_end:
        raise StreamEnded("the job was cancelled and its stream has been read to the end")


def _note_told(job: Job) -> None:
    job.delivered_end = job.status is JobStatus.CANCELLED
