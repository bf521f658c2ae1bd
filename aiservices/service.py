"""One service: what it accepts, how its jobs stand, and how it starts and stops.

The parts: ``jobs`` knows every job, ``model`` is the handler's model on its thread, the pipeline leads jobs to the
model and back while it is READY. One task of the service does that: load, then run the pipeline; once nobody uses the
model, unload it, and begin again if a job came meanwhile. It ends with the model COLD, FAILED or the service closed; a
job begins it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from aiservices.callers import Caller
from aiservices.errors import InvalidInput, JobNotFound, ModelBroken, Unavailable
from aiservices.handler import Handler
from aiservices.inputs import read_input
from aiservices.jobs import EndReason, Job, JobManager, JobRecords, JobRequest, JobStatus, Page, Restorer, Stage, Wanted
from aiservices.journal import JobRecord
from aiservices.logs import get_logger
from aiservices.model import LoadFailed, Model, ServiceState
from aiservices.pipeline import Pipeline, Tools
from aiservices.settings import ServiceConfig
from aiservices.shared import Shared

DRAIN_RETRY_AFTER_S = 10.0
SHUTDOWN_REASON = "the server shut down before the job ended"

log = get_logger(__name__)


class Service:
    """One named service of the registry. Lives on the event loop.

    Args:
        config: its settings.
        handler: its handler, not loaded yet.
        shared: what it shares with the others.
    """

    def __init__(self, config: ServiceConfig, handler: Handler[Any, Any], shared: Shared) -> None:
        self.name = config.name
        self.config = config
        self.handler = handler
        self.draining = False
        metrics = shared.metrics.service(config.name)
        self._webhooks, self._outputs, self._on_broken = shared.webhooks, shared.outputs, shared.on_broken
        self._records = JobRecords(shared.journal)
        self._jobs = JobManager(config, metrics, shared.webhooks, shared.worker_id, self._records, shared.quotas)
        self._share = shared.budget.share(config.memory_gib, lambda: self._pipeline.idle_since, self._jobs.changed.set)
        self._model = Model(handler, config, shared.store, shared.load_slot, metrics, self._share)
        tools = Tools(fetcher=shared.fetcher, outputs=shared.outputs, pool=shared.pool, children=shared.children)
        self._pipeline = Pipeline(handler, config, self._jobs, self._model.thread, tools, metrics)
        self._work: asyncio.Task[None] | None = None
        self._rested = False

    @property
    def state(self) -> ServiceState:
        """Where its model is."""
        return self._model.state

    @property
    def reason(self) -> str | None:
        """Why it is not READY."""
        return self._model.reason

    @property
    def broken(self) -> bool:
        """Whether its model is beyond repair in this process."""
        return self._model.broken

    @property
    def busy(self) -> bool:
        """Whether a job has not ended yet."""
        return self._jobs.live_count > 0

    @property
    def takes_jobs(self) -> bool:
        """Whether its model works on jobs at once, or loads on purpose with its first job."""
        cold_on_purpose = self.state is ServiceState.COLD and (self.config.load == "first_use" or self._rested)
        return cold_on_purpose or self.state in (ServiceState.READY, ServiceState.UNLOADING)

    # What callers do

    def submit(self, request: JobRequest) -> Job:
        """Accept a job; the request becomes its own.

        Raises:
            InvalidInput: naming the field.
            QueueFull: try again later.
            Unavailable: draining, there is no model, or the journal cannot be written.
            Conflict: the idempotency key came with another request.
        """
        self._check_available(warmup=request.is_warmup)
        if request.webhook is not None:
            self._webhooks.check_url(request.webhook, field="$.webhook")
        if request.destination is not None:
            self._outputs.check(request.destination)
        raw = request.input
        if not request.is_warmup:
            request.input = self._read_input(raw)
        job = self._jobs.submit(request, raw, model_ready=self.state is ServiceState.READY)
        self._begin_work()
        return job

    def get(self, job_id: str, caller: Caller) -> Job:
        """Return a remembered job, by the only way from an id to one. Raises JobNotFound, for another tenant's too."""
        job = self._jobs.get(job_id)
        if not caller.may_see(job.request.caller):
            raise JobNotFound(job_id)
        return job

    def page(self, caller: Caller, wanted: Wanted) -> Page:
        """Find jobs that the caller may see, the newest first. Raises JobNotFound for ``before``."""
        return self._jobs.page(caller, wanted)

    def cancel(self, job_id: str, caller: Caller) -> Job:
        """End a job as CANCELLED; one that has ended stays as it is. Raises JobNotFound."""
        job = self.get(job_id, caller)
        self.give_up(job)
        return job

    def give_up(self, job: Job) -> None:
        """End a job as CANCELLED that nobody will ask for again; one that has ended stays as it is."""
        job.finish(Stage.CANCELLED, reason=EndReason.CANCELLED)

    def retry(self, job_id: str, caller: Caller) -> Job:
        """Put an ended job back in the queue. Raises JobNotFound, Conflict, QueueFull or Unavailable."""
        self._check_available(warmup=self.get(job_id, caller).request.is_warmup)
        job = self._jobs.retry(job_id)
        self._begin_work()
        return job

    def purge(self, caller: Caller) -> int:
        """Cancel every queued job that the caller may see; return how many."""
        return self._jobs.purge(caller)

    def status(self, job: Job) -> dict[str, Any]:
        """The job's status object without its output and, while it waits, its place in the queue and the reason."""
        shown = job.status_object()
        if job.stage.waits:
            shown["queuePosition"] = self._jobs.queue_position(job)
            if self.state is not ServiceState.READY and self.reason:
                shown["reason"] = self.reason
        return shown

    def health(self) -> dict[str, dict[str, int]]:
        """Counts of jobs and of workers (this process is one) in RunPod's words."""
        ended, running = self._jobs.ended_counts, self._jobs.running_count
        ready = self.state is ServiceState.READY
        return {
            "jobs": {
                "completed": ended[JobStatus.COMPLETED],
                "failed": ended[JobStatus.FAILED] + ended[JobStatus.TIMED_OUT],
                "inProgress": running,
                "inQueue": self._jobs.waiting_count,
                "retried": self._jobs.retried_count,
            },
            "workers": {
                "idle": int(ready and running == 0),
                "initializing": int(self.state in (ServiceState.COLD, ServiceState.LOADING, ServiceState.UNLOADING)),
                "ready": int(ready),
                "running": int(ready and running > 0),
                "throttled": 0,
                "unhealthy": int(self.state is ServiceState.FAILED),
            },
        }

    # Its life

    async def start(self) -> None:
        """Begin to load the model, unless the first job shall; returns at once."""
        if self.config.load == "start":
            self._begin_work()

    async def restore(self, records: Sequence[JobRecord]) -> None:
        """Go on with this service's jobs of an earlier process, in the order of acceptance; before :meth:`start`."""
        await Restorer(self._jobs, self._records, self._read_input).restore(records)
        if self._jobs.live_count:
            self._begin_work()

    async def wait_recorded(self) -> None:
        """Wait until everything that happened to jobs so far survives the process, or cannot."""
        await self._records.flush()

    def refuse(self, job_ids: Sequence[str], reason: str) -> None:
        """Take jobs back whose acceptance could not be recorded."""
        self._jobs.refuse(job_ids, reason)

    async def drain(self, grace_s: float) -> None:
        """Refuse new jobs and let running ones end within ``grace_s``; recorded ones are left to the next process."""
        self.draining = True
        self._jobs.leave(running=False)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._jobs.wait_idle(), grace_s)
        if self._jobs.live_count:
            log.warning("service.drained_unfinished", service=self.name, jobs=self._jobs.live_count)
        self._stop_jobs()
        await self.wait_recorded()

    async def close(self) -> None:
        """End what is left, stop the pipeline, unload the model on its thread and let the thread end."""
        self.draining = True
        self._stop_jobs()
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        await self._model.close()
        self._jobs.close()

    def _stop_jobs(self) -> None:
        self._jobs.leave(running=True)
        self._jobs.fail_all(EndReason.SHUTDOWN, SHUTDOWN_REASON)

    def _begin_work(self) -> None:
        """Load the model, if nobody does or did with success, and work on jobs."""
        needed = self.state in (ServiceState.COLD, ServiceState.FAILED) and not self.broken
        if needed and (self._work is None or self._work.done()):
            self._model.expect_load()
            self._work = asyncio.get_running_loop().create_task(self._load_and_run())

    async def _load_and_run(self) -> None:
        try:
            await self._load_and_run_until_unused()
            while self._jobs.live_count:  # they came while it was unloaded
                self._model.expect_load()
                await self._load_and_run_until_unused()
        except LoadFailed as error:
            self._jobs.fail_all(EndReason.LOAD_FAILED, str(error))
        except Exception as error:
            if not isinstance(error, ModelBroken):
                log.error("service.pipeline_failed", service=self.name, exc_info=error)
                error = ModelBroken("internal error: the service stopped working")
            self._model.fail(str(error))
            self._jobs.fail_all(EndReason.MODEL_BROKEN, str(error))
            self._on_broken()

    async def _load_and_run_until_unused(self) -> None:
        await self._model.load()
        await self._pipeline.run(self._share.wanted_back)
        self._rested = True
        await self._model.rest()

    def _read_input(self, payload: Mapping[str, Any]) -> Any:
        given = read_input(self.handler.Input, payload)
        try:
            self.handler.validate(given)
        except InvalidInput:
            raise
        except Exception as error:
            log.error("service.validate_failed", service=self.name, exc_info=error)
            raise InvalidInput("$", "the input could not be checked") from None
        return given

    def _check_available(self, warmup: bool) -> None:
        if self.draining:
            raise Unavailable("the server is shutting down", DRAIN_RETRY_AFTER_S)
        if self.broken or (self.state is ServiceState.FAILED and not warmup):
            raise Unavailable(self.reason or "the model is not available")
