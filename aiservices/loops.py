"""Event loops: the fastest there is for the process, and one on a thread of its own for libraries that block theirs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run the work to its end on a new loop: uvloop's where it is installed, else the standard library's."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # an extra of its own, since not every platform has it
        return asyncio.new_event_loop
    return uvloop.new_event_loop


class LoopThread:
    """Runs coroutines on a loop of its own; who awaits them is on another one, or on none.

    Args:
        name: of the thread, for stack dumps.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await the work from the running loop. Cancelling this cancels the work, without waiting for its end."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._begun()))

    def run_blocking(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for the work where no loop runs."""
        return asyncio.run_coroutine_threadsafe(work, self._begun()).result()

    def close(self) -> None:
        """Stop the loop after what it does now; does not wait. What still runs there ends with the process."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    def _begun(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name=self._name, daemon=True)
            self._thread.start()
        return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """On the thread: run until stopped, then let what is left hear that it is cancelled."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
