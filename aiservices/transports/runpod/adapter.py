"""From RunPod's events to jobs of the registry and back, on whichever loop the registry lives.

An event is ``{"id", "input"[, "s3Config"]}``. RunPod itself keeps the queue, the caller's limits and the webhook, so
those stay out. What comes back is what RunPod's worker loop makes a result of: a dict is the output, and one with a
string under ``error`` fails the job with that text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import attrs
import msgspec

from aiservices.errors import InvalidInput, ServiceError
from aiservices.inputs import explain
from aiservices.jobs import Destination, Job, JobRequest
from aiservices.jobs.output import ON_LOOP_BYTES
from aiservices.logs import get_logger
from aiservices.model import ServiceState
from aiservices.registry import Registry
from aiservices.service import Service
from aiservices.settings import Config

log = get_logger(__name__)

PROGRESS_INTERVAL_S = 0.5
"""How often a job's progress is told at most: each report costs the worker loop a thread and a connection."""

SLOTS_PER_ROW = 4
"""Jobs held for each row of a batch: one batch runs, one is prepared, and the worker loop, which sleeps a second when
it is full, has time to fetch the next two."""

Report = Callable[[float], None]
"""Told how much of a job is done, 0 to 1."""


class Event(msgspec.Struct, frozen=True, rename="camel"):
    """What RunPod hands a worker. Other keys are ignored."""

    id: str
    input: dict[str, Any]
    s3_config: Destination | None = None


@attrs.define(eq=False)
class _Run:
    """One event at work."""

    service: Service
    job: Job
    told: float | None = None

    def tell(self, report: Report) -> None:
        """Report the progress if there is new one."""
        progress = self.job.progress
        if progress is not None and progress != self.told and not self.job.ended:
            self.told = progress
            report(progress)


class RunPodAdapter:
    """Answers RunPod's events with a registry's services.

    Args:
        registry: not started yet.
        progress_interval_s: how often progress is reported at most.
    """

    def __init__(self, registry: Registry, *, progress_interval_s: float = PROGRESS_INTERVAL_S) -> None:
        self.registry = registry
        self._progress_interval_s = progress_interval_s
        self._runs: dict[str, _Run] = {}

    async def open(self, timeout_s: float) -> None:
        """Start the services and wait until their models are loaded (those that load with their first job: no wait).

        Raises:
            ServiceError: a model could not be loaded, or not within ``timeout_s``; names each with its reason.
        """
        await self.registry.start()
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*map(_loaded, self.registry.services.values()))
        except TimeoutError:
            raise ServiceError(f"not ready within {timeout_s:g} s: {_reasons(self.registry)}") from None
        if unfit := _reasons(self.registry):
            raise ServiceError(unfit)

    async def close(self, grace_s: float) -> None:
        """Let the running jobs end within ``grace_s``, end the rest with a reason, unload every model."""
        await self.registry.drain(grace_s)
        await self.registry.close()

    async def handle(self, event: Mapping[str, Any], report: Report) -> dict[str, Any]:
        """Run one event to its end. If the waiting is cancelled, the job is.

        Returns:
            The output, or ``{"error": text}``.
        """
        try:
            run = self._submit(event)
        except Exception as error:
            return _refusal(error)
        try:
            while not run.job.ended:
                await run.job.wait_end(self._progress_interval_s)
                run.tell(report)
        finally:
            self._end(str(event["id"]), run)
        return await _answer(run.job)

    async def stream(self, event: Mapping[str, Any], report: Report) -> AsyncIterator[Any]:
        """Run one event to its end and give each chunk as it comes; the output, or ``{"error": text}``, comes last."""
        try:
            run = self._submit(event)
        except Exception as error:
            yield _refusal(error)
            return
        try:
            ended = False
            while not ended:
                await run.job.wait_news(self._progress_interval_s)
                ended = run.job.ended  # now: it may end while a chunk is handed on, and leave more behind
                for chunk in run.job.read_stream():
                    yield msgspec.to_builtins(chunk)
                run.tell(report)
        finally:
            self._end(str(event["id"]), run)
        yield await _answer(run.job)

    async def cancel(self, event_id: str) -> None:
        """End an event's job, as RunPod asked for; one that has ended stays as it is."""
        run = self._runs.get(event_id)
        if run is not None:
            run.service.give_up(run.job)

    def _submit(self, event: Mapping[str, Any]) -> _Run:
        given = _read(event)
        service, payload = self._choose(given.input)
        # RunPod's Python client wraps an empty input once more.
        payload = {} if payload == {"input": {}} else payload
        run = _Run(service, service.submit(JobRequest(input=payload, destination=given.s3_config)))
        self._runs[given.id] = run
        log.info("runpod.job", service=service.name, job=run.job.id, request=given.id)
        return run

    def _choose(self, payload: Mapping[str, Any]) -> tuple[Service, Mapping[str, Any]]:
        """Find the service that ``input.service`` names. A single one need not be named."""
        services = self.registry.services
        if "service" not in payload and len(services) == 1:
            return next(iter(services.values())), payload
        rest = {key: value for key, value in payload.items() if key != "service"}
        name = payload.get("service")
        if not isinstance(name, str):
            raise InvalidInput("$.service", f"expected one of {', '.join(services)}")
        return self.registry.get(name), rest

    def _end(self, event_id: str, run: _Run) -> None:
        """The event is over for RunPod; nobody will ask for what its job makes of itself from now on."""
        self._runs.pop(event_id, None)
        run.service.give_up(run.job)


def slots(config: Config) -> int:
    """How many jobs a worker of this profile should hold at once, so that every batch fills."""
    return sum(SLOTS_PER_ROW * service.max_batch_size for service in config.services.values())


def _read(event: Mapping[str, Any]) -> Event:
    try:
        return msgspec.convert(event, Event)
    except msgspec.ValidationError as error:
        raise explain(Event, str(error)) from None


def _refusal(error: Exception) -> dict[str, Any]:
    """What is unexpected is logged whole and not shown: RunPod's loop would send the traceback to the caller."""
    if isinstance(error, ServiceError):
        return {"error": str(error)}
    log.error("runpod.failed", exc_info=error)
    return {"error": "internal error"}


async def _answer(job: Job) -> dict[str, Any]:
    output = job.output
    if output is None:
        return {"error": job.error or f"the job ended as {job.status.value}"}
    return output.as_dict() if output.size_bytes <= ON_LOOP_BYTES else await asyncio.to_thread(output.as_dict)


async def _loaded(service: Service) -> None:
    """Wait until the service's model is loaded or cannot be: a warm-up job ends by either."""
    if service.state is not ServiceState.COLD:
        job = service.submit(JobRequest(input={"action": "warmup"}))
        await job.wait_end(job.ttl_s)


def _reasons(registry: Registry) -> str:
    unfit = {ServiceState.LOADING, ServiceState.FAILED}
    return "; ".join(f"{each.name}: {each.reason}" for each in registry.services.values() if each.state in unfit)
