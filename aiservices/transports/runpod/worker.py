"""The bridge between RunPod's worker loop, which owns the main thread's loop and signals, and the registry's own loop.

The registry lives on a loop of its own, so that models load before RunPod is asked for jobs, and are unloaded in order
after the worker loop has returned: that one has no hook for either.

Stopping. RunPod's loop, told to stop while it asks for jobs, drops the jobs of an answer that comes late. So the first
SIGTERM only makes every slot look taken (:class:`_Slots`); RunPod's own handler is called once no question is open.
Jobs that are running after ``grace_s`` end with a reason.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from types import FrameType
from typing import Any

from aiservices.logs import get_logger
from aiservices.loops import LoopThread
from aiservices.transports.runpod.adapter import RunPodAdapter

log = get_logger(__name__)

Event = dict[str, Any]
Settings = dict[str, Any]

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_END = object()


class Worker:
    """What RunPod's ``start`` is given. Its methods run on RunPod's loop, in the main thread.

    Args:
        adapter: lives on ``registry_loop``.
        registry_loop: the registry's loop.
        slots: most jobs to hold at once.
        grace_s: how long running jobs may go on after SIGTERM.
        update: ``runpod.serverless.progress_update``.
    """

    def __init__(
        self,
        adapter: RunPodAdapter,
        registry_loop: LoopThread,
        *,
        slots: int,
        grace_s: float,
        update: Callable[[Event, Any], None],
    ) -> None:
        self._adapter = adapter
        self._registry_loop = registry_loop
        self._slots = slots
        self._grace_s = grace_s
        self._update = update
        self._stop: Callable[[], None] | None = None
        self._stopping = False
        self._hooked = False
        self._settings: Settings = {}

    def settings(self, *, stream: bool) -> Settings:
        """What to start RunPod's loop with.

        Args:
            stream: hand over an async generator. RunPod then makes every job's output a list: the chunks and, last,
                what the job would have answered alone.
        """
        self._settings = {
            "handler": self.stream if stream else self.handle,
            "concurrency_modifier": self.concurrency,
            "return_aggregate_stream": True,
        }
        return self._settings

    async def handle(self, event: Event) -> dict[str, Any]:
        """Answer one event. RunPod's stop signal cancels this, and it the job, before the event counts as stopped."""
        try:
            answer = await self._registry_loop.run(self._adapter.handle(event, partial(self._report, event)))
        except asyncio.CancelledError:
            await self._registry_loop.run(self._adapter.cancel(event["id"]))
            raise
        self._look_at_device()
        return answer

    async def stream(self, event: Event) -> AsyncIterator[Any]:
        """Answer one event with its chunks and, last, its output."""
        answers = self._adapter.stream(event, partial(self._report, event))
        try:
            while (item := await self._registry_loop.run(_next(answers))) is not _END:
                self._look_at_device()
                yield item
        except (asyncio.CancelledError, GeneratorExit):
            await self._registry_loop.run(self._adapter.cancel(event["id"]))
            raise

    def concurrency(self, current: int) -> int:
        """How many jobs to hold. RunPod asks between two takes, on its loop: the place to stop it at, too."""
        del current
        if not self._hooked:
            self._hook_signals()
        if self._stopping and self._stop is not None:
            self._stop()
        return _Slots(self._slots, lambda: self._stopping)

    def _hook_signals(self) -> None:
        """Put our handler before RunPod's, which it has installed by now."""
        self._hooked = True
        theirs = signal.getsignal(signal.SIGTERM)
        if callable(theirs):
            self._stop = partial(theirs, signal.SIGTERM, None)
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            signal.signal(number, partial(self._on_signal, loop))

    def _on_signal(self, loop: asyncio.AbstractEventLoop, number: int, frame: FrameType | None) -> None:
        del frame
        loop.call_soon_threadsafe(self._begin_to_stop, loop, number)

    def _begin_to_stop(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        if not self._stopping:
            self._stopping = True
            log.info("runpod.stopping", signal=signal.Signals(number).name, grace_s=self._grace_s)
            loop.call_later(self._grace_s, self._end_jobs)

    def _end_jobs(self) -> None:
        self._ending = asyncio.ensure_future(self._registry_loop.run(self._adapter.registry.drain(0.0)))

    def _report(self, event: Mapping[str, Any], fraction: float) -> None:
        """On the registry's loop; RunPod's function starts a thread and returns."""
        self._update(dict(event), {"progress": fraction})

    def _look_at_device(self) -> None:
        """After a broken device, have RunPod replace this worker once it has told the results."""
        if self._adapter.registry.broken:
            self._settings["refresh_worker"] = True


class _Slots(int):
    """A number of slots of which none are free any more once the worker stops.

    RunPod's loop takes ``slots - occupied`` jobs at a time; that difference is what is answered here.
    """

    def __new__(cls, count: int, stopping: Callable[[], bool]) -> _Slots:
        slots = super().__new__(cls, count)
        slots._stopping = stopping
        return slots

    _stopping: Callable[[], bool]

    def __sub__(self, occupied: int) -> int:
        return 0 if self._stopping() else int(self) - occupied


async def _next(answers: AsyncIterator[Any]) -> Any:
    return await anext(answers, _END)
