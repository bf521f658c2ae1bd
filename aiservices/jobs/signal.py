"""Wakes whoever waits for something to happen to a job."""

from __future__ import annotations

import asyncio

from aiservices.timers import Timers


class Signal:
    """Holds no state but who waits: look at the job before and after."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] | None = None  # most jobs are never waited for

    def fire(self) -> None:
        """Wake everyone who waits now."""
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            _wake(waiter)

    async def wait(self, timers: Timers, timeout_s: float) -> None:
        """Wait until the signal fires or the time is up."""
        waiter = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        timer = timers.call_later(timeout_s, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            if self._waiters is not None and waiter in self._waiters:
                self._waiters.remove(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
