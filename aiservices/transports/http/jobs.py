"""The job API: RunPod's operations, each one handler at every mount."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Literal

import attrs
from aiohttp import web

from aiservices.handler import OffersVoices
from aiservices.jobs import Job
from aiservices.jobs.output import encode_parts
from aiservices.service import Service
from aiservices.transports.http.answers import send
from aiservices.transports.http.body import read_job_request
from aiservices.transports.http.errors import TooManyAnswers, json_response
from aiservices.transports.http.listing import list_jobs
from aiservices.transports.http.lookup import CALLER, REGISTRY, find_job, find_service, job_id, wait_s
from aiservices.transports.http.stream import poll, send_events

RUNSYNC_WAIT_S = 90.0
STREAM_WAIT_S = 2.0
"""RunPod's clients give a poll of ``/stream`` 3 s (JS) or 10 s (Python)."""

Answer = Literal["Accepted", "Job", "Stream", "Cancelled", "Purged", "Jobs", "Health", "Voices"]
"""Schema of an operation's answer in the OpenAPI document."""


async def run(request: web.Request) -> web.StreamResponse:
    """Put a job into the queue and answer at once."""
    _, job = await _submit(request, request.app[REGISTRY].config.server.max_run_body_bytes)
    return await _short(job)


async def runsync(request: web.Request) -> web.StreamResponse:
    """Put a job into the queue and wait for its end, at most as long as ``wait`` says."""
    timeout_s = wait_s(request, RUNSYNC_WAIT_S)
    service, job = await _submit(request, request.app[REGISTRY].config.server.max_runsync_body_bytes)
    await job.wait_end(timeout_s)
    return await _whole(request, service, job) if job.ended else await _short(job)


async def status(request: web.Request) -> web.StreamResponse:
    """Show a job: its status and, once it has ended, its output or error."""
    return await _whole(request, *find_job(request))


async def status_sync(request: web.Request) -> web.StreamResponse:
    """Show a job once it has ended, or when ``wait`` has passed."""
    timeout_s = wait_s(request, RUNSYNC_WAIT_S)
    service, job = find_job(request)
    await job.wait_end(timeout_s)
    return await _whole(request, service, job)


async def stream(request: web.Request) -> web.StreamResponse:
    """Take the chunks that have come since the last call; as server-sent events where Accept asks for them."""
    service, job = find_job(request)
    if "text/event-stream" in request.headers.get("Accept", ""):
        return await send_events(request, service, job)
    return await send(request, (await poll(job, wait_s(request, STREAM_WAIT_S)),))


async def cancel(request: web.Request) -> web.StreamResponse:
    """End a job; one that has ended stays as it is."""
    return await _short(find_service(request).cancel(job_id(request), request[CALLER]))


async def retry(request: web.Request) -> web.StreamResponse:
    """Put a FAILED or TIMED_OUT job back into the queue, with the same id and input."""
    return await _short(find_service(request).retry(job_id(request), request[CALLER]))


async def purge_queue(request: web.Request) -> web.StreamResponse:
    """Cancel every job of the caller's tenant that waits in the queue."""
    service = find_service(request)
    removed = service.purge(request[CALLER])
    await service.wait_recorded()
    return json_response({"removed": removed, "status": "completed"})


async def health(request: web.Request) -> web.StreamResponse:
    """Count the service's jobs and workers."""
    return json_response(find_service(request).health())


async def voices(request: web.Request) -> web.StreamResponse:
    """List the voices that the service can be asked for; none if it does not speak."""
    handler = find_service(request).handler
    offered = handler.voices_offered() if isinstance(handler, OffersVoices) else ()
    return json_response(
        {"voices": [attrs.asdict(voice, filter=lambda _, value: value is not None) for voice in offered]}
    )


@attrs.frozen
class Operation:
    """One operation of the job API, for the routes and for the OpenAPI document.

    Attributes:
        name: the operation id.
        methods: a GET route answers HEAD as well.
        path: below the mount.
        handle: the handler; the first line of its docstring is the summary.
        answer: schema of the 200 answer.
        reads_body: whether it takes the body of ``run``.
        waits: whether it takes ``?wait=``.
        lists: whether it takes ``?status=``, ``?limit=`` and ``?before=``.
        errors: statuses it may answer beside those that every operation has.
    """

    name: str
    methods: tuple[str, ...]
    path: str
    handle: Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]
    answer: Answer
    reads_body: bool = False
    waits: bool = False
    lists: bool = False
    errors: tuple[int, ...] = ()


_READS = ("GET", "POST")
"""The Go client polls with POST, all others with GET."""

OPERATIONS = (
    Operation("run", ("POST",), "/run", run, "Accepted", reads_body=True, errors=(400, 409, 413, 415, 429)),
    Operation(
        "runsync",
        ("POST",),
        "/runsync",
        runsync,
        "Job",
        reads_body=True,
        waits=True,
        errors=(400, 409, 413, 415, 429),
    ),
    Operation("status", _READS, "/status/{job_id}", status, "Job"),
    Operation("status-sync", _READS, "/status-sync/{job_id}", status_sync, "Job", waits=True, errors=(400,)),
    Operation("stream", _READS, "/stream/{job_id}", stream, "Stream", waits=True, errors=(400, 410)),
    Operation("cancel", ("POST",), "/cancel/{job_id}", cancel, "Cancelled"),
    Operation("retry", ("POST",), "/retry/{job_id}", retry, "Accepted", errors=(409, 429)),
    Operation("purge-queue", ("POST",), "/purge-queue", purge_queue, "Purged"),
    Operation("jobs", ("GET",), "/jobs", list_jobs, "Jobs", lists=True, errors=(400, 404)),
    Operation("health", ("GET",), "/health", health, "Health"),
    Operation("voices", ("GET",), "/voices", voices, "Voices"),
)


def mounts(single_service: bool) -> tuple[str, ...]:
    """Where the operations are mounted: RunPod's forms, our own, and the short one of a single service."""
    named = ("/v2/{service}", "/{service}/api/v1", "/{service}")
    return ("/api/v1", *named) if single_service else named


def routes(single_service: bool) -> Iterator[web.RouteDef]:
    """Every operation at every mount."""
    for mount in mounts(single_service):
        for operation in OPERATIONS:
            for method in operation.methods:
                add = web.get if method == "GET" else web.post
                yield add(mount + operation.path, operation.handle)


async def _submit(request: web.Request, max_bytes: int) -> tuple[Service, Job]:
    service = find_service(request)
    return service, service.submit(await read_job_request(request, max_bytes))


async def _whole(request: web.Request, service: Service, job: Job) -> web.StreamResponse:
    await job.wait_recorded()
    try:
        return await send(request, await encode_parts(service.status(job), job.output))
    except TooManyAnswers as error:
        error.job_id = job.id  # the caller of runsync does not know it yet
        raise


async def _short(job: Job) -> web.Response:
    """What a caller asked for as it is now: while that is recorded, the job may go on."""
    shown: dict[str, Any] = {"id": job.id, "status": job.status}
    if job.memory_only:
        shown["journalled"] = False
    await job.wait_recorded()
    return json_response(shown)
