"""Between jobs and the journal: what happens to a job becomes an event, and a record becomes a job again.

Without a journal, and for a job that is not journalled, every call returns at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from aiservices.callers import Caller
from aiservices.errors import Unavailable
from aiservices.jobs.job import Job
from aiservices.jobs.output import JobOutput, OutputFile
from aiservices.jobs.request import Destination, JobRequest
from aiservices.jobs.status import Stage
from aiservices.jobs.stream import StreamBuffer
from aiservices.journal import (
    QUEUED,
    RETRY_S,
    RUNNING,
    Accepted,
    Delivered,
    Ended,
    Event,
    Forgotten,
    JobRecord,
    Journal,
    Requeued,
    Started,
    StoredOutput,
)
from aiservices.logs import get_logger
from aiservices.trace import Trace

if TYPE_CHECKING:
    from aiservices.jobs.manager import JobManager

log = get_logger(__name__)

_PLAIN = {
    name: getattr(attrs.fields(JobRequest), name).default
    for name in (
        "input_bytes",
        "timeout_s",
        "ttl_s",
        "low_priority",
        "webhook",
        "stream_bytes",
        "idempotency_key",
        "request_id",
    )
}
"""Attributes of a request that are kept as they are, with the values that need not be kept."""

_STAGES: Mapping[str, Stage] = {
    QUEUED: Stage.QUEUED,
    RUNNING: Stage.QUEUED,
    **{stage.status.value: stage for stage in Stage if stage.ended},
}


class JobRecords:
    """Tells the journal of one service's jobs. Lives on the event loop.

    Args:
        journal: None keeps everything in memory alone.
        clock: seconds since the epoch; the loop's clock ends with the process.
    """

    def __init__(self, journal: Journal | None, clock: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._clock = clock
        self._last_position = 0

    def accepted(self, job: Job, raw: Mapping[str, Any]) -> None:
        """Record an acceptance; a warm-up is none, and secrets are never written unencrypted.

        Args:
            raw: the input as the caller sent it; not changed by anyone from now on.

        Raises:
            Unavailable: nothing can be written now.
        """
        request = job.request
        if self._journal is None or request.is_warmup:
            return
        secret = None
        if request.destination is not None:
            if not self._journal.keeps_secrets:
                job.memory_only = True
                log.warning("job.not_journalled", service=job.service, job=job.id, reason="no key for its s3Config")
                return
            secret = msgspec.to_builtins(request.destination)
        kept = {name: value for name, usual in _PLAIN.items() if (value := getattr(request, name)) != usual}
        if request.caller.key:
            kept |= {"tenant": request.caller.tenant, "key": request.caller.key}
        if request.fingerprint:
            kept["fingerprint"] = request.fingerprint.hex()
        if request.trace is not None:
            kept["trace"] = attrs.asdict(request.trace)
        accepted = Accepted(
            job_id=job.id,
            service=job.service,
            sequence=job.sequence,
            at=job.created_at,
            request={"input": raw, **kept},
            secret=secret,
        )
        job.position = self._last_position = self._journal.write(accepted)
        job.recorded = True

    def started(self, job: Job) -> None:
        """The model took it."""
        if job.recorded:
            assert job.started_at is not None
            self._write(Started(job_id=job.id, attempt=job.attempt, at=self._wall(job.started_at, job)))

    def ended(self, job: Job) -> None:
        """It ended; answers that tell so wait for this to be written."""
        if not job.recorded:
            return
        assert job.ended_at is not None
        output = job.output
        files = () if output is None else tuple((each.name, each.media_type, each.data) for each in output.files)
        ended = Ended(
            job_id=job.id,
            attempt=job.attempt,
            status=job.status.value,
            at=self._wall(job.ended_at, job),
            started_at=None if job.started_at is None else self._wall(job.started_at, job),
            output=None if output is None else StoredOutput(fields=output.fields, files=files),
            error=job.error,
            webhook_due=job.request.webhook is not None,
        )
        job.position = self._write(ended)

    def requeued(self, job: Job) -> None:
        """It waits again."""
        if job.recorded:
            at = self._wall(job.submitted_at, job)
            job.position = self._write(Requeued(job_id=job.id, attempt=job.attempt, at=at))

    def delivered(self, job: Job, attempt: int) -> None:
        """The webhook of that attempt's end is not sent again."""
        if job.recorded:
            self._write(Delivered(job_id=job.id, attempt=attempt))

    def forgotten(self, job: Job) -> None:
        """Nobody can ask for it any more."""
        if job.recorded:
            self._write(Forgotten(job_id=job.id))

    async def wait(self, job: Job) -> None:
        """Wait until what happened to the job last is written, or cannot be: then memory alone holds it.

        Raises:
            Unavailable: its acceptance could not be written, so it was taken back.
        """
        if self._journal is not None and job.recorded:
            await self._journal.committed(job.position)
        if job.refused is not None:
            raise Unavailable(job.refused, RETRY_S)

    def when_written(self, job: Job, call: Callable[[], None]) -> None:
        """Make a call once what happened to the job last is written."""
        if self._journal is not None and job.recorded:
            self._journal.when_committed(job.position, call)
        else:
            call()

    def when_may_run(self, jobs: Sequence[Job], call: Callable[[], None]) -> None:
        """Make a call once the model may have started jobs: at once, unless one of them waited or ran in an earlier
        process. Then their starts are written first, or a job that kills the process at once would never count."""
        if self._journal is not None and any(job.restored for job in jobs):
            self._journal.when_committed(self._last_position, call)
        else:
            call()

    async def flush(self) -> None:
        """Wait until everything told so far is written, or cannot be."""
        if self._journal is not None:
            await self._journal.committed(self._last_position)

    def revive(self, record: JobRecord, jobs: JobManager) -> Job:
        """Make a job of what the journal remembers; its input is the raw one. The manager does not know it yet."""
        kept = record.request
        request = JobRequest(
            input=kept.get("input") or {},
            destination=None if record.secret is None else msgspec.convert(record.secret, Destination),
            fingerprint=bytes.fromhex(kept.get("fingerprint", "")),
            trace=Trace(**kept["trace"]) if kept.get("trace") else None,
            caller=Caller(tenant=kept.get("tenant", ""), key=kept.get("key", "")),
            **{name: kept[name] for name in _PLAIN if name in kept},
        )
        stored = record.output
        job = Job(
            id=record.job_id,
            jobs=jobs,
            request=request,
            stream=StreamBuffer(request.stream_bytes or jobs.config.stream_buffer_bytes),
            sequence=record.sequence,
            submitted_at=self._loop_time(record.queued_at, jobs),
            created_at=record.accepted_at,
            stage=_STAGES[record.state],
            attempt=record.attempt,
            output=None if stored is None else JobOutput(stored.fields, tuple(OutputFile(*f) for f in stored.files)),
            error=record.error,
        )
        if job.ended:  # in order, though a clock may have been set back between them
            began = job.submitted_at
            if record.started_at is not None:
                began = job.started_at = max(began, self._loop_time(record.started_at, jobs))
            job.ended_at = max(began, self._loop_time(record.ended_at or record.queued_at, jobs))
        job.recorded = job.restored = True
        return job

    def _write(self, event: Event) -> int:
        assert self._journal is not None
        self._last_position = self._journal.write(event)
        return self._last_position

    def _wall(self, loop_time: float, job: Job) -> float:
        return self._clock() - job.jobs.now() + loop_time

    def _loop_time(self, wall: float, jobs: JobManager) -> float:
        return jobs.now() - max(0.0, self._clock() - wall)  # a clock that was set back makes nothing younger than now
