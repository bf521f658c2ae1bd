"""The jobs that wait for the model, in the order in which it takes them."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from aiservices.jobs.job import Job
from aiservices.jobs.status import Stage


class JobQueue:
    """Every job that is IN_QUEUE, best first: a sorted list, which at some thousand jobs beats any tree."""

    def __init__(self) -> None:
        self._entries: list[tuple[tuple[int, int], Job]] = []
        self.size_bytes = 0
        """Of the requests that wait."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Job]:
        return (job for _, job in self._entries)

    def add(self, job: Job) -> None:
        """Put a job at its place."""
        bisect.insort(self._entries, (job.priority, job))  # no two jobs have the same sequence, so none is compared
        self.size_bytes += job.request.input_bytes

    def remove(self, job: Job) -> None:
        """Take a job out that is there."""
        del self._entries[self.place_of(job)]
        self.size_bytes -= job.request.input_bytes

    def place_of(self, job: Job) -> int:
        """How many jobs are before it."""
        return bisect.bisect_left(self._entries, (job.priority,))

    def first_queued(self) -> Job | None:
        """The best job that nobody prepares yet."""
        return next((job for job in self if job.stage is Stage.QUEUED), None)
