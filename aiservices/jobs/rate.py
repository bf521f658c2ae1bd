"""How fast a service works off its queue, as measured, and what follows for who has to wait."""

from __future__ import annotations

import math

WINDOW_S, WINDOW_JOBS = 60.0, 40
"""What lies further back, in time at work, counts for less than 1/e: a minute follows a change in the jobs' size before
a caller's patience ends; where jobs are slow, the time of so many tells more than chance."""

ENOUGH_JOBS = 10
"""Fewer tell nothing about a rate."""

UNKNOWN_RETRY_AFTER_S = 5.0
"""What a refused caller is told while nothing was measured."""

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 300.0
"""Bounds of what it is told then: nobody shall hammer, nor stay away for long because of one slow minute."""


class CompletionRate:
    """Jobs that a model works off in each second of its work, old ones counting less; idle time does not count.

    Every call takes the loop's clock and is O(1).
    """

    def __init__(self) -> None:
        self._measured = 0
        self._jobs = 0.0
        self._work_s = 0.0
        self._since_s = 0.0

    def begin(self, now_s: float) -> None:
        """Note that an idle model begins to work."""
        self._since_s = now_s

    def end(self, now_s: float) -> None:
        """Note that a job left the model, however it ended."""
        passed_s = max(0.0, now_s - self._since_s)
        mean_s = self._work_s / self._jobs if self._jobs else 0.0
        kept = math.exp(-passed_s / max(WINDOW_S, WINDOW_JOBS * mean_s))
        self._measured += 1
        self._jobs = self._jobs * kept + 1
        self._work_s = self._work_s * kept + passed_s
        self._since_s = now_s

    def wait_s(self, jobs: int) -> float | None:
        """Return how long so many jobs take; None if too little was measured."""
        return jobs * self._work_s / self._jobs if self._measured >= ENOUGH_JOBS else None

    def retry_after_s(self, jobs: int) -> float:
        """Return when to try again who waits for so many jobs to be worked off."""
        wait_s = self.wait_s(jobs)
        return UNKNOWN_RETRY_AFTER_S if wait_s is None else bounded_s(wait_s)


def bounded_s(retry_after_s: float) -> float:
    """Keep a time for trying again within what makes sense to a caller."""
    return min(max(retry_after_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
