"""Calls from any thread to the event loop, in order."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from aiservices.logs import get_logger

log = get_logger(__name__)


class LoopCalls:
    """Carries calls from any thread to the event loop in their order, with one wake-up for as many as are waiting."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._scheduled = False

    def bind(self) -> None:
        """Deliver to the running loop from now on."""
        self._loop = asyncio.get_running_loop()

    def post(self, call: Callable[[], None]) -> None:
        """Have the loop make this call soon; after the loop was closed it is dropped."""
        assert self._loop is not None
        with self._lock:
            self._calls.append(call)
            if self._scheduled:
                return
            self._scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            self._calls.clear()
            self._scheduled = False

    def _deliver(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, deque()
            self._scheduled = False
        for call in calls:
            try:
                call()
            except Exception as error:  # one that raises must not take those behind it along
                log.error("loop.call_failed", exc_info=error)
