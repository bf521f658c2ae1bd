"""The jobs that wait for the model, in the order in which it takes them.

Keys take turns: a waiting job has a turn, one more than the last of its key, or than the model has come to if that is
later (start-time fair queueing, Goyal, Vin and Cheng 1996, with all jobs of one size). So a key with 10 000 jobs lets
another's first one before its second, and the jobs of one key go in the order of their submission.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator

from aiservices.callers import Caller
from aiservices.jobs.job import Job, Priority
from aiservices.jobs.status import Stage

PREPARING_PER_PLACE = 2
"""Most jobs of one key that are prepared at once, for each place of ``prefetch``: half of those that may be STALLED, so
that a key whose hosts are silent leaves the other half to others."""


class JobQueue:
    """Every job that is IN_QUEUE, best first. Calls cost in the number of keys whose jobs wait.

    Args:
        prefetch: places ahead of the model.
    """

    def __init__(self, prefetch: int) -> None:
        self._lines: dict[tuple[str, str], _Line] = {}
        self._most_preparing = PREPARING_PER_PLACE * prefetch
        self._turns: dict[int, int] = {}
        """The turn that the model has come to, by class."""
        self._count = 0
        self.size_bytes = 0
        """Of the requests that wait."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        return (job for line in self._lines.values() for _, job in line.entries)

    def rank(self, job: Job) -> None:
        """Give a job the place that it would get now."""
        line, queue_class = self._lines.get(job.request.caller.key_id), job.request.queue_class
        last_turn = 0 if line is None else line.last_turns.get(queue_class, 0)
        job.priority = (queue_class, max(self._turns.get(queue_class, 0), last_turn) + 1, job.sequence)

    def add(self, job: Job) -> None:
        """Put a job at its place."""
        self.rank(job)
        queue_class, turn, _ = job.priority
        line = self._lines.setdefault(job.request.caller.key_id, _Line())
        line.last_turns[queue_class] = turn
        bisect.insort(line.entries, (job.priority, job))  # no two jobs have the same sequence, so none is compared
        self._count += 1
        self.size_bytes += job.request.input_bytes

    def remove(self, job: Job) -> None:
        """Take a job out that is there."""
        key_id = job.request.caller.key_id
        line = self._lines[key_id]
        del line.entries[bisect.bisect_left(line.entries, (job.priority,))]
        if not line.entries:
            del self._lines[key_id]
        self._count -= 1
        self.size_bytes -= job.request.input_bytes

    def take(self, job: Job) -> None:
        """Take a job out because its turn has come."""
        self.remove(job)
        queue_class, turn, _ = job.priority
        self._turns[queue_class] = max(self._turns.get(queue_class, 0), turn)

    def place_of(self, job: Job) -> int:
        """How many jobs are before it."""
        return sum(bisect.bisect_left(line.entries, (job.priority,)) for line in self._lines.values())

    def first_queued(self, may_begin: Callable[[Caller], bool]) -> Job | None:
        """The best job that nobody prepares yet, of those whose callers may have one more begun."""
        best: Job | None = None
        for (_, key), line in self._lines.items():
            job = line.first_queued(self._most_preparing if key else None)
            if job is not None and (best is None or job.priority < best.priority) and may_begin(job.request.caller):
                best = job
        return best


class _Line:
    """The waiting jobs of one key: a sorted list, which at some thousand jobs beats any tree."""

    def __init__(self) -> None:
        self.entries: list[tuple[Priority, Job]] = []
        self.last_turns: dict[int, int] = {}

    def first_queued(self, most_preparing: int | None) -> Job | None:
        preparing = 0
        for _, job in self.entries:
            if job.stage is Stage.QUEUED:
                return job if most_preparing is None or preparing < most_preparing else None
            preparing += job.stage is not Stage.READY
        return None
