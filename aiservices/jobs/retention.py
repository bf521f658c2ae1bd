"""How long ended jobs are remembered: bounded by count, bytes and time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from aiservices.jobs.job import Job
from aiservices.settings import ServiceConfig
from aiservices.timers import Timer, Timers


class Retention:
    """Ended jobs in the order of their ends.

    Args:
        config: the bounds.
        timers: for the bound by time.
        forget: told of each job that is remembered no longer.
    """

    def __init__(self, config: ServiceConfig, timers: Timers, forget: Callable[[Job], None]) -> None:
        self._config = config
        self._timers = timers
        self._forget = forget
        self._jobs: OrderedDict[str, tuple[Job, int]] = OrderedDict()
        self._expiry: Timer | None = None
        self.size_bytes = 0
        """What the jobs weighed when they ended."""

    def add(self, job: Job) -> None:
        """Remember a job that has just ended; forget what is beyond the bounds. The newest stays, however large."""
        self._jobs[job.id] = (job, job.size_bytes)
        self.size_bytes += job.size_bytes
        while len(self._jobs) > max(1, self._config.keep_results) or (
            len(self._jobs) > 1 and self.size_bytes > self._config.keep_results_bytes
        ):
            self._forget_oldest()
        self._schedule()

    def take_back(self, job: Job) -> None:
        """Let go of a job that lives again."""
        _, size_bytes = self._jobs.pop(job.id)
        self.size_bytes -= size_bytes

    def _forget_oldest(self) -> None:
        _, (job, size_bytes) = self._jobs.popitem(last=False)
        self.size_bytes -= size_bytes
        self._forget(job)

    def _schedule(self) -> None:
        """One timer for the oldest result serves all: they expire in the order in which they finished."""
        if self._expiry is None and self._jobs:
            self._expiry = self._timers.call_later(self._oldest_left_s(), Retention._expire, self)

    def _oldest_left_s(self) -> float:
        oldest, _ = next(iter(self._jobs.values()))
        assert oldest.ended_at is not None
        return oldest.ended_at + self._config.keep_results_s - asyncio.get_running_loop().time()

    def _expire(self) -> None:
        self._expiry = None
        while self._jobs and self._oldest_left_s() <= 0:
            self._forget_oldest()
        self._schedule()
