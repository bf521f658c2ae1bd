"""The jobs of one service: accepted, remembered, ended and forgotten, all in memory and all bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aiservices.callers import Caller
from aiservices.errors import Conflict
from aiservices.jobs import limits
from aiservices.jobs.admission import Admission
from aiservices.jobs.announcer import Announcer
from aiservices.jobs.ids import new_id
from aiservices.jobs.job import Job
from aiservices.jobs.listing import KnownJobs, Page, Wanted
from aiservices.jobs.queue import JobQueue
from aiservices.jobs.rate import CompletionRate
from aiservices.jobs.records import JobRecords
from aiservices.jobs.request import JobRequest
from aiservices.jobs.retention import Retention
from aiservices.jobs.status import ENDED, RETRYABLE, EndReason, JobStatus, Stage
from aiservices.jobs.stream import StreamBuffer
from aiservices.metrics import ServiceMetrics
from aiservices.quotas import Quotas
from aiservices.settings import ServiceConfig
from aiservices.timers import Timers
from aiservices.webhooks import WebhookSender


class JobManager:
    """Keeps every job of one service, from acceptance until it is forgotten. Lives on the event loop.

    Args:
        config: the service's bounds and times.
        metrics: counts what is accepted and how it ends.
        webhooks: tells callers' servers of an end.
        worker_id: names this process in status objects.
        records: told what happens to each job.
        quotas: of the callers' keys, over all services.
    """

    def __init__(
        self,
        config: ServiceConfig,
        metrics: ServiceMetrics,
        webhooks: WebhookSender,
        worker_id: str,
        records: JobRecords,
        quotas: Quotas,
    ) -> None:
        self.config = config
        self.service = config.name
        self.worker_id = worker_id
        self.records = records
        self.timers = Timers()
        self.changed = asyncio.Event()
        """Set when a job is queued or ends: there is something to do for whoever works on jobs."""
        self.ended_counts: dict[JobStatus, int] = dict.fromkeys(ENDED, 0)
        self.retried_count = 0
        self.idle_since = 0.0
        """When the last live job ended, on the loop's clock."""
        self._metrics = metrics
        metrics.watch(lambda: self.waiting_count, lambda: self.running_count)
        self.announcer = Announcer(metrics, webhooks, records)
        self._known = KnownJobs()
        self._quotas = quotas
        quotas.when_room(self.changed.set)
        self._counts: dict[Stage, int] = dict.fromkeys(Stage, 0)
        self._queue = JobQueue(max(config.prefetch, config.max_batch_size))
        self._rate = CompletionRate()
        self._admission = Admission(config, self._queue, self._rate, quotas)
        self._retention = Retention(config, self.timers, self._forget)
        self._sequence = 0
        self._interrupted = False
        self._idle = asyncio.Event()
        self._idle.set()

    def now(self) -> float:
        """Seconds of the event loop's clock."""
        return asyncio.get_running_loop().time()

    def count(self, stage: Stage) -> int:
        """How many jobs are at a stage."""
        return self._counts[stage]

    @property
    def waiting_count(self) -> int:
        """Jobs IN_QUEUE."""
        return len(self._queue)

    @property
    def running_count(self) -> int:
        """Jobs IN_PROGRESS."""
        return self._counts[Stage.RUNNING] + self._counts[Stage.FINISHING]

    @property
    def live_count(self) -> int:
        """Jobs that have not ended."""
        return self.waiting_count + self.running_count

    # What callers do

    def submit(self, request: JobRequest, raw: Mapping[str, Any], *, model_ready: bool = True) -> Job:
        """Accept a job, or return the one that has the same idempotency key.

        Args:
            request: with the checked input; becomes the job's own.
            raw: the input as the caller sent it.
            model_ready: whether the model works, so that what was measured tells how long the job would wait.

        Raises:
            QueueFull: a bound of the queue, a limit of the caller's key or its time to live there would be passed.
            Conflict: the idempotency key was used with another request.
            Unavailable: it cannot be recorded now.
        """
        if (known := self._known.same_request(request)) is not None:
            return known
        self._admission.check_room(request)
        self._sequence += 1
        job = Job(
            id=new_id(),
            jobs=self,
            request=request,
            stream=StreamBuffer(request.stream_bytes or self.config.stream_buffer_bytes),
            sequence=self._sequence,
            submitted_at=self.now(),
        )
        if model_ready and not request.is_warmup:
            self._queue.rank(job)
            self._admission.check_wait(job)
        self.records.accepted(job, raw)
        self._add(job)
        self._enqueue(job)
        return job

    def restore(self, job: Job) -> None:
        """Go on with a job of an earlier process; those that ended come in the order of their ends."""
        self._sequence = max(self._sequence, job.sequence)
        self._add(job)
        (self._retention.add if job.ended else self._enqueue)(job)

    def refuse(self, job_ids: Sequence[str], reason: str) -> None:
        """Take jobs back whose acceptance could not be recorded; ids of others are passed over."""
        for job in [self._known.get(job_id) for job_id in job_ids if job_id in self._known]:
            job.refused, job.recorded = reason, False
            job.finish(Stage.CANCELLED, reason=EndReason.NOT_RECORDED)
            self._retention.take_back(job)
            self._forget(job)

    def get(self, job_id: str) -> Job:
        """Return a remembered job. Raises JobNotFound for one that never was, or has been forgotten."""
        return self._known.get(job_id)

    def page(self, caller: Caller, wanted: Wanted) -> Page:
        """Find jobs that the caller may see, the newest first. Raises JobNotFound for ``before``."""
        return self._known.page(caller, wanted)

    def retry(self, job_id: str) -> Job:
        """Put a FAILED or TIMED_OUT job back in the queue under its own id and input.

        Raises:
            JobNotFound: it has been forgotten.
            Conflict: it is in another state.
            QueueFull: there is no room, or a limit of its key would be passed.
        """
        job = self.get(job_id)
        if job.status not in RETRYABLE:
            raise Conflict(f"only a FAILED or TIMED_OUT job can be retried; this one is {job.status.value}")
        if job.request.input is None:
            raise Conflict("its input does not fit any more, or could not be read back")
        if job.attempt > self.config.max_retries:
            raise Conflict(f"it was begun {job.attempt} times; the most is {self.config.max_retries} after the first")
        self._admission.check_room(job.request)
        self._retention.take_back(job)
        job.begin_again()
        self.move(job, Stage.QUEUED)
        self.retried_count += 1
        self._metrics.retried()
        self.records.requeued(job)
        self._enqueue(job)
        return job

    def purge(self, caller: Caller) -> int:
        """End every queued job that the caller may see as CANCELLED; return how many."""
        queued = [job for job in self._queue if caller.may_see(job.request.caller)]
        return sum(job.finish(Stage.CANCELLED, reason=EndReason.CANCELLED) for job in queued)

    def fail_all(self, reason: EndReason, error: str) -> None:
        """End every job that has not ended as FAILED, for this reason and with this text."""
        for job in [*self._live()]:
            job.finish(Stage.FAILED, reason=reason, error=error)

    def leave(self, *, running: bool) -> None:
        """Leave recorded jobs to the next process: those that wait, and those that run only if told so."""
        for job in [job for job in self._live() if job.recorded and (running or job.stage.waits)]:
            job.leave()

    def queue_position(self, job: Job) -> int:
        """1 for the next job to be taken; 0 for one that does not wait."""
        return 1 + self._queue.place_of(job) if job.stage.waits else 0

    async def wait_idle(self) -> None:
        """Wait until every job has ended."""
        await self._idle.wait()

    # What the pipeline does

    def next_queued(self) -> Job | None:
        """The job that is to be prepared next."""
        return self._queue.first_queued(self._quotas.may_begin)

    def move(self, job: Job, stage: Stage) -> None:
        """Note where a job is now."""
        before = job.stage
        self._counts[before] -= 1
        self._counts[stage] += 1
        job.enter(stage)
        waiting, running = stage.waits - before.waits, stage.busy - before.busy
        self._quotas.count(job.request.caller, waiting=waiting, running=running)

    def start(self, job: Job) -> None:
        """The model takes a job; its execution time begins to count."""
        assert job.stage.waits, job.stage
        self._queue.take(job)
        job.started_at = self.now()
        self.records.started(job)
        if self.running_count == 0:
            self._rate.begin(job.started_at)
        self.move(job, Stage.RUNNING)
        limits.limit_running(job, self.timers)

    def take_interrupted(self) -> bool:
        """Whether a job ended in the middle of its way since the last call."""
        interrupted, self._interrupted = self._interrupted, False
        return interrupted

    # What a job does

    def ended(self, job: Job, stage: Stage, *, interrupted: bool) -> None:
        """Enter a job's end into the books and make it known; for :meth:`Job.finish` alone.

        Args:
            job: has its output or error already.
            stage: the final one.
            interrupted: whether it was ended from outside, so that work on it may have to be stopped.
        """
        if job.stage.waits:
            self._queue.remove(job)
        elif not job.request.is_warmup:
            self._rate.end(self.now())
        self._interrupted |= interrupted and job.stage is not Stage.QUEUED
        self.move(job, stage)
        limits.lift(job)
        if job.status not in RETRYABLE:
            job.request.forget_input()
        self.ended_counts[job.status] += 1
        if self.live_count == 0:
            self.idle_since = self.now()
            self._idle.set()
        self.records.ended(job)
        self.announcer.ended(job)
        self._retention.add(job)
        self.changed.set()

    def left(self, job: Job) -> None:
        """Enter into the books that the next process goes on with a job; for :meth:`Job.leave` alone."""
        if job.stage.waits:
            self._queue.remove(job)
        else:
            self.records.requeued(job)
        self._interrupted |= job.stage is not Stage.QUEUED
        self.move(job, Stage.LEFT)
        limits.lift(job)
        if self.live_count == 0:
            self._idle.set()
        self.changed.set()

    def close(self) -> None:
        """Stop every timer."""
        self.timers.close()

    def _live(self) -> Iterator[Job]:
        return (job for job in self._known if not job.stage.over)

    def _add(self, job: Job) -> None:
        self._known.add(job)
        self._counts[job.stage] += 1
        self._quotas.count(job.request.caller, waiting=int(job.stage.waits), running=0)

    def _enqueue(self, job: Job) -> None:
        self._queue.add(job)
        limits.limit_waiting(job, self.timers)
        self._idle.clear()
        self._metrics.submitted()
        self.changed.set()

    def _forget(self, job: Job) -> None:
        self._known.forget(job)
        self.records.forgotten(job)
