"""When a model that nobody uses gives its memory back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiservices.jobs import JobManager
from aiservices.timers import Timer


class Rest:
    """Watches for how long no job was there. Lives on the event loop.

    Args:
        idle_s: seconds without a job after which the model may rest; 0: never.
        jobs: of the service; its loop is woken when it is time to look again.
    """

    def __init__(self, idle_s: float, jobs: JobManager) -> None:
        self._idle_s = idle_s
        self._jobs = jobs
        self._began_at = 0.0
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Note that the model has just been loaded: its time begins now."""
        self._began_at = self._jobs.now()

    def due(self, gives_way: Callable[[], bool]) -> bool:
        """Whether nobody has used the model for ``idle_s``; looks again then, if so far nobody does.

        Args:
            gives_way: asked while nobody uses it whether another needs its memory, so that it may rest at once.
        """
        if self._jobs.live_count:
            return False
        if gives_way():
            return True
        if self._idle_s == 0:
            return False
        left_s = max(self._began_at, self._jobs.idle_since) + self._idle_s - self._jobs.now()
        if left_s > 0 and (self._timer is None or not self._timer.active):
            self._timer = self._jobs.timers.call_later(left_s, asyncio.Event.set, self._jobs.changed)
        return left_s <= 0
