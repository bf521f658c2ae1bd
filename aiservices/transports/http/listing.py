"""The list of a service's jobs: which ones a query asks for, and what is told of each."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from aiservices.callers import Caller
from aiservices.errors import InvalidInput
from aiservices.jobs import DEFAULT_LIMIT, MAX_LIMIT, Job, Wanted, read_statuses
from aiservices.service import Service
from aiservices.transports.http.answers import send
from aiservices.transports.http.lookup import CALLER, find_service

JOBS_PER_ROUND = 100
"""Jobs described before the event loop gets its turn: some 0.5 ms."""

MAX_ERROR_CHARACTERS = 300
"""Of one job's error; its status object has all of it."""


async def list_jobs(request: web.Request) -> web.StreamResponse:
    """List the jobs that the caller may see, the newest first, without their outputs."""
    service, caller = find_service(request), request[CALLER]
    page = service.page(caller, _wanted(request))
    entries: list[dict[str, Any]] = []
    for start in range(0, len(page.jobs), JOBS_PER_ROUND):
        entries += (_entry(service, job, caller) for job in page.jobs[start : start + JOBS_PER_ROUND])
        await asyncio.sleep(0)
    await service.wait_recorded()  # an end is told once it survives the process, here as in a status
    shown = zip(page.jobs, entries, strict=True)
    answer: dict[str, Any] = {"jobs": [entry for job, entry in shown if job.refused is None]}
    if page.next is not None:
        answer["next"] = page.next
    return await send(request, (msgspec.json.encode(answer),))


def _wanted(request: web.Request) -> Wanted:
    """Read the query. Raises InvalidInput, naming the parameter."""
    statuses = request.query.get("status")
    limit = request.query.get("limit", f"{DEFAULT_LIMIT}")
    if not re.fullmatch(r"[0-9]{1,9}", limit) or not 1 <= int(limit) <= MAX_LIMIT:
        raise InvalidInput("limit", f"expected a whole number from 1 to {MAX_LIMIT}")
    return Wanted(
        limit=int(limit),
        statuses=frozenset() if statuses is None else read_statuses(statuses),
        before=request.query.get("before"),
    )


def _entry(service: Service, job: Job, caller: Caller) -> dict[str, Any]:
    """The status object with what a list needs beside it; whose job it is for operators alone."""
    shown = service.status(job)
    shown["createdAt"] = datetime.fromtimestamp(job.created_at, UTC).isoformat(timespec="microseconds")
    if shown.pop("output", None) is not None:  # of a job that runs
        shown["progress"] = job.progress
    if len(shown.get("error", "")) > MAX_ERROR_CHARACTERS:
        shown["error"] = f"{shown['error'][:MAX_ERROR_CHARACTERS]}…"
    owner = job.request.caller
    if caller.operator and owner.key:
        shown |= {"tenant": owner.tenant, "key": owner.key}
    return shown
