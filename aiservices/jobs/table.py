"""Every remembered job of one service, by its id and by its idempotency key."""

from __future__ import annotations

from collections.abc import Iterator

from aiservices.errors import Conflict, JobNotFound
from aiservices.jobs.job import Job
from aiservices.jobs.request import JobRequest


class JobTable:
    """Finds jobs; iterates over them in the order in which they came, oldest first."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._by_key: dict[tuple[str, str], Job] = {}

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def __reversed__(self) -> Iterator[Job]:
        return reversed(self._jobs.values())

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def get(self, job_id: str) -> Job:
        """Return a remembered job.

        Raises:
            JobNotFound: it never was, or has been forgotten.
        """
        try:
            return self._jobs[job_id]
        except KeyError:
            raise JobNotFound(job_id) from None

    def same_request(self, request: JobRequest) -> Job | None:
        """Return the job that an earlier request with this idempotency key made.

        Raises:
            Conflict: that was another request.
        """
        known = self._by_key.get((request.caller.tenant, request.idempotency_key or ""))
        if known is not None and known.request.fingerprint != request.fingerprint:
            raise Conflict("this idempotency key was used with another request")
        return known

    def add(self, job: Job) -> None:
        """Remember a job."""
        self._jobs[job.id] = job
        if job.request.idempotency_key is not None:
            self._by_key[job.request.caller.tenant, job.request.idempotency_key] = job

    def remove(self, job: Job) -> None:
        """Forget one."""
        del self._jobs[job.id]
        if job.request.idempotency_key is not None:
            del self._by_key[job.request.caller.tenant, job.request.idempotency_key]
