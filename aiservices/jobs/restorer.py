"""What becomes of the jobs of an earlier process when the next one starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiservices.errors import ServiceError
from aiservices.jobs.job import Job
from aiservices.jobs.manager import JobManager
from aiservices.jobs.records import JobRecords
from aiservices.jobs.status import RETRYABLE, EndReason, Stage
from aiservices.journal import RUNNING, JobRecord
from aiservices.logs import get_logger

log = get_logger(__name__)

JOBS_PER_ROUND = 50
"""Jobs restored before the event loop gets its turn: reading an input takes some 20 µs."""


class Restorer:
    """Makes the remembered jobs of one service live again.

    Args:
        jobs: knows none of them yet.
        records: of the same service.
        read_input: checks a raw input; raises a ServiceError where it does not fit.
    """

    def __init__(self, jobs: JobManager, records: JobRecords, read_input: Callable[[Mapping[str, Any]], Any]) -> None:
        self._jobs, self._records, self._read_input = jobs, records, read_input

    async def restore(self, remembered: Sequence[JobRecord]) -> None:
        """Queue what waited or ran, in the order of acceptance, and remember what ended.

        A job that ran begins a new attempt, unless it had ``max_attempts`` of them: it may be what ends the process.
        """
        live = [record for record in remembered if record.ended_at is None]
        ended = [record for record in remembered if record.ended_at is not None]
        for index, record in enumerate([*sorted(ended, key=lambda each: each.ended_at or 0.0), *live]):
            if index % JOBS_PER_ROUND == 0:
                await asyncio.sleep(0)
            self._restore(record)
        if remembered:
            log.info("jobs.restored", service=self._jobs.service, live=len(live), ended=len(ended))

    def _restore(self, record: JobRecord) -> None:
        job = self._records.revive(record, self._jobs)
        misfit = self._read(job, record.unreadable)
        if job.ended:
            self._jobs.restore(job)
            if record.webhook_due:
                self._jobs.announcer.send_webhook(job, job.attempt)
            return
        limit = self._jobs.config.max_attempts
        if record.state == RUNNING and job.attempt >= limit:
            misfit = f"the process ended while it ran, at attempt {job.attempt} of at most {limit}"
        elif record.state == RUNNING:
            job.attempt += 1
            self._records.requeued(job)
        self._jobs.restore(job)
        if misfit is not None:
            job.finish(Stage.FAILED, reason=EndReason.NOT_RESTORED, error=misfit)

    def _read(self, job: Job, unreadable: str | None) -> str | None:
        """Check the input again; return why it does not fit. One that nobody needs, or can use, is let go."""
        if unreadable is not None or (job.ended and job.status not in RETRYABLE):
            job.request.forget_input()
            return unreadable
        try:
            job.request.input = self._read_input(job.request.input)
        except ServiceError as error:
            job.request.forget_input()
            return f"after a new start its input does not fit: {error}"
        return None
