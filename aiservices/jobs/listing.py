"""The jobs that a service knows: by id, by idempotency key and, for whoever wants to see them all, by age."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import attrs

from aiservices.callers import Caller
from aiservices.errors import Conflict, InvalidInput, JobNotFound, nearest
from aiservices.jobs.job import Job
from aiservices.jobs.request import JobRequest
from aiservices.jobs.status import JobStatus

MAX_LIMIT = 1000
DEFAULT_LIMIT = 100

MAX_LOOKS = 2000
"""Jobs that one page looks at, however few of them fit: some 0.4 ms of the event loop."""


@attrs.frozen(kw_only=True)
class Wanted:
    """Which jobs a page shall have.

    Attributes:
        limit: most jobs of it.
        statuses: only jobs that stand so; empty: all.
        before: id of a job; only older ones. None begins with the newest.
    """

    limit: int = DEFAULT_LIMIT
    statuses: frozenset[JobStatus] = frozenset()
    before: str | None = None


@attrs.frozen
class Page:
    """Some jobs, the newest first.

    Attributes:
        next: what ``before`` has to be for the page behind this one, which may be there also where this one is short;
            None where there is none.
    """

    jobs: Sequence[Job]
    next: str | None


def read_statuses(text: str) -> frozenset[JobStatus]:
    """Read words of the wire, separated by commas.

    Raises:
        InvalidInput: one is none; names ``status``.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in JobStatus.__members__:
            raise InvalidInput("status", f"unknown status {word[:40]!r}{nearest(word[:40], JobStatus.__members__)}")
    return frozenset(map(JobStatus, words))


class KnownJobs:
    """Every job that has been accepted and not been forgotten. Lives on the event loop.

    Beside each tenant's jobs stands a list of them by age, and one of all for operators: a page then costs what it
    shows, not what is known. They are sorted by bisection: jobs come at the end and mostly go at the beginning, and to
    move ten thousand pointers takes 2 µs.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Job] = {}
        self._by_key: dict[tuple[str, str], Job] = {}  # tenant and idempotency key
        self._by_age: list[Job] = []
        self._of_tenant: dict[str, list[Job]] = {}

    def __iter__(self) -> Iterator[Job]:
        return iter(self._by_id.values())

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._by_id

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            JobNotFound: it never was, or has been forgotten.
        """
        try:
            return self._by_id[job_id]
        except KeyError:
            raise JobNotFound(job_id) from None

    def same_request(self, request: JobRequest) -> Job | None:
        """Return the job that an earlier request of the tenant with this idempotency key made, if there is one.

        Raises:
            Conflict: that was another request.
        """
        known = self._by_key.get((request.caller.tenant, request.idempotency_key or ""))
        if known is not None and known.request.fingerprint != request.fingerprint:
            raise Conflict("this idempotency key was used with another request")
        return known

    def add(self, job: Job) -> None:
        """Know a job, of whatever age."""
        self._by_id[job.id] = job
        if job.request.idempotency_key is not None:
            self._by_key[job.request.caller.tenant, job.request.idempotency_key] = job
        _insert(self._by_age, job)
        if job.request.caller.tenant:
            _insert(self._of_tenant.setdefault(job.request.caller.tenant, []), job)

    def forget(self, job: Job) -> None:
        """Know a job no longer."""
        job.forgotten = True
        tenant = job.request.caller.tenant
        del self._by_id[job.id]
        if job.request.idempotency_key is not None:
            del self._by_key[tenant, job.request.idempotency_key]
        _remove(self._by_age, job)
        if tenant:
            theirs = self._of_tenant[tenant]
            _remove(theirs, job)
            if not theirs:
                del self._of_tenant[tenant]

    def page(self, caller: Caller, wanted: Wanted) -> Page:
        """Find jobs that the caller may see, the newest first.

        Raises:
            JobNotFound: it may see no job that ``before`` names.
        """
        jobs = self._by_age if caller.operator else self._of_tenant.get(caller.tenant, [])
        end = len(jobs) if wanted.before is None else _place(jobs, self._edge(caller, wanted.before))
        found: list[Job] = []
        at, stop = end, max(0, end - MAX_LOOKS)
        while at > stop and len(found) < wanted.limit:
            at -= 1
            if not wanted.statuses or jobs[at].status in wanted.statuses:
                found.append(jobs[at])
        return Page(found, jobs[at].id if at > 0 else None)

    def _edge(self, caller: Caller, job_id: str) -> Job:
        job = self._by_id.get(job_id)
        if job is None or not caller.may_see(job.request.caller):
            raise JobNotFound(job_id)
        return job


def _sequence(job: Job) -> int:
    return job.sequence


def _place(jobs: Sequence[Job], job: Job) -> int:
    return bisect.bisect_left(jobs, _sequence(job), key=_sequence)


def _insert(jobs: list[Job], job: Job) -> None:
    if jobs and _sequence(jobs[-1]) > _sequence(job):
        bisect.insort(jobs, job, key=_sequence)  # restored ones come in the order of their ends
    else:
        jobs.append(job)


def _remove(jobs: list[Job], job: Job) -> None:
    del jobs[0 if jobs[0] is job else _place(jobs, job)]  # the oldest ends first, nearly always
