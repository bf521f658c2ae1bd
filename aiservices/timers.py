"""Many timers on one of the event loop's.

A job has three in its life, which nearly always are cancelled. The standard loop's cost little, but uvloop opens and
closes a handle of libuv for each, which cost more than all the rest of the job's books (measured: 35 of 140 µs).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

COMPACT_ABOVE = 64
"""Fewer timers than so many are never swept for cancelled ones."""


class Timer:
    """One call to come; :meth:`cancel` is harmless once it was made."""

    __slots__ = ("_argument", "_call", "_timers")

    def __init__(self, timers: Timers, call: Callable[[Any], object], argument: Any) -> None:
        self._timers = timers
        self._call: Callable[[Any], object] | None = call
        self._argument = argument

    @property
    def active(self) -> bool:
        """Whether the call is still to come."""
        return self._call is not None

    def cancel(self) -> None:
        """Do not make the call."""
        if self._call is not None:
            self._call = self._argument = None
            self._timers.cancelled += 1

    def fire(self) -> None:
        """Make the call now; for :class:`Timers` alone."""
        call, argument = self._call, self._argument
        self._call = self._argument = None
        if call is not None:
            call(argument)


class Timers:
    """Makes calls at their times, on the loop that runs. Not for other threads."""

    def __init__(self) -> None:
        self.cancelled = 0
        """Timers that still lie in the heap although they were cancelled."""
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = float("inf")

    def __len__(self) -> int:
        return len(self._heap) - self.cancelled

    def call_later(self, delay_s: float, call: Callable[[Any], object], argument: Any) -> Timer:
        """Call with one argument after so many seconds."""
        loop = asyncio.get_running_loop()
        timer, due_at = Timer(self, call, argument), loop.time() + delay_s
        if self.cancelled > COMPACT_ABOVE and self.cancelled > len(self._heap) // 2:
            self._compact()
        heapq.heappush(self._heap, (due_at, next(self._order), timer))
        if due_at < self._armed_for:
            self._arm(loop, due_at)
        return timer

    def close(self) -> None:
        """Make no call any more."""
        self._heap.clear()
        self.cancelled = 0
        self._disarm()

    def _compact(self) -> None:
        """Drop cancelled timers once they are the greater part, so that memory follows the others."""
        self._heap = [entry for entry in self._heap if entry[2].active]
        heapq.heapify(self._heap)
        self.cancelled = 0

    def _arm(self, loop: asyncio.AbstractEventLoop, due_at: float) -> None:
        self._disarm()
        self._handle, self._armed_for = loop.call_at(due_at, self._fire_due), due_at

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self._armed_for = None, float("inf")

    def _fire_due(self) -> None:
        self._handle, self._armed_for = None, float("inf")
        loop = asyncio.get_running_loop()
        now = loop.time()
        try:
            while self._heap and (self._heap[0][0] <= now or not self._heap[0][2].active):
                _, _, timer = heapq.heappop(self._heap)
                if timer.active:
                    timer.fire()
                else:
                    self.cancelled -= 1
        finally:  # also when a call raised: those behind it are due
            if self._heap:
                self._arm(loop, self._heap[0][0])
