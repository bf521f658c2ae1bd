"""The way of every job of one service, as one loop: the queue, preparing, rows on the model, finishing.

::

    QUEUED -> PREPARING -> READY -> RUNNING -> FINISHING -> ended
              preprocess            the model   postprocess, upload

One task runs :meth:`Pipeline.run`; it wakes when a job is queued or ends (:attr:`JobManager.changed`) or the model's
thread reports, and moves whatever can move. At most ``prefetch`` jobs are prepared ahead of the model, so memory is
bounded and priority still counts; one that takes long to prepare gives its place to the next (STALLED), which a bounded
number may do.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec

from aiservices.errors import JobFailed, contained
from aiservices.handler import Handler, Task
from aiservices.jobs import Destination, EndReason, Job, JobManager, JobOutput, Priority, Stage
from aiservices.metrics import ServiceMetrics
from aiservices.model import ModelThread
from aiservices.outputs import Packed
from aiservices.pipeline.calls import LoopCalls
from aiservices.pipeline.model_rows import ModelRows
from aiservices.pipeline.rest import Rest
from aiservices.pipeline.row import PrepareTimeout, Row, Surroundings, Tools
from aiservices.settings import ServiceConfig

STALLED_AFTER_S = 1.0
"""A job that prepares for longer gives its place among ``prefetch`` to another."""

STALLED_PER_PLACE = 4
"""How many jobs may be STALLED, for each place of ``prefetch``."""

WARMED_UP = msgspec.json.encode({"state": "READY"})


class Pipeline:
    """Leads every job of one service from the queue to its end, while its model is loaded. Lives on the event loop.

    Args:
        handler: the service's handler.
        config: bounds of batch, prefetch and times.
        jobs: where every job is.
        thread: the model's.
        tools: what it works with.
        metrics: of the service.
    """

    def __init__(
        self,
        handler: Handler[Any, Any],
        config: ServiceConfig,
        jobs: JobManager,
        thread: ModelThread,
        tools: Tools,
        metrics: ServiceMetrics,
    ) -> None:
        self._handler = handler
        self._config = config
        self._jobs = jobs
        self._outputs = tools.outputs
        self._calls = LoopCalls()
        self._surroundings = Surroundings(
            fetcher=tools.fetcher, pool=tools.pool, children=tools.children, calls=self._calls, metrics=metrics
        )
        self._on_model = ModelRows(handler, config, jobs, thread, self._calls, metrics)
        self._prepares = type(handler).preprocess is not Handler.preprocess
        self._shapes = type(handler).postprocess is not Handler.postprocess
        self._prefetch = max(config.prefetch, config.max_batch_size)  # or no batch could ever fill
        self._ready: list[tuple[Priority, Row]] = []
        """Rows that may join the model: a heap by priority, which no two share."""
        self._at_work: set[Row] = set()
        """Rows that are being prepared or finished."""
        self._sending = 0
        """Rows whose output is on its way to a caller's own bucket."""
        self._companions_until: float | None = None
        self._running = False
        self._rest = Rest(config.idle_s, jobs)

    @property
    def empty(self) -> bool:
        """Whether nothing is on the model, being prepared or being finished."""
        return not self._on_model and not self._at_work

    @property
    def idle_since(self) -> float | None:
        """When the last job ended, on the loop's clock; None while the model is in use or not loaded."""
        return self._jobs.idle_since if self._running and self.empty and not self._jobs.live_count else None

    async def run(self, gives_way: Callable[[], bool] = bool) -> None:
        """Move jobs along until cancelled, or until nobody has used the model for ``idle_s``.

        Args:
            gives_way: asked whenever nobody uses the model, whether it has to be unloaded at once.

        Raises:
            ModelBroken: the device is beyond repair, or the model's thread hangs.
        """
        self._calls.bind()
        self._running = True
        self._rest.begin()
        try:
            while True:
                self._let_go()
                self._settle()
                self._begin_preparing()
                self._fill_model()
                if self.empty and self._rest.due(gives_way):
                    return
                await self._jobs.changed.wait()
                self._jobs.changed.clear()
        finally:
            self._running = False
            await self._stop()

    async def _stop(self) -> None:
        """Stop preparing and finishing, and forget every row."""
        works = [row.work for row in self._at_work if row.work is not None]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        self._on_model.forget()
        for _, row in self._ready:
            row.task = None
        self._ready.clear()

    def _let_go(self) -> None:
        """Stop what is being done for jobs that have ended meanwhile."""
        if not self._jobs.take_interrupted():
            return
        for row in self._at_work:
            if not row.current and row.work is not None:
                row.work.cancel()
        for _, row in self._ready:
            if not row.current:
                row.task = None
        self._ready = [entry for entry in self._ready if entry[1].task is not None]
        heapq.heapify(self._ready)
        self._on_model.let_go()

    # Preparing

    def _begin_preparing(self) -> None:
        """Take jobs out of the queue as far as there are places ahead of the model."""
        places = self._prefetch if self._prepares else self._room()
        while (job := self._jobs.next_queued()) is not None:
            if job.request.is_warmup:
                self._jobs.start(job)
                warm = JobOutput(WARMED_UP)
                job.finish(Stage.COMPLETED, reason=EndReason.COMPLETED, attempt=job.attempt, output=warm)
            elif self._jobs.count(Stage.PREPARING) + len(self._ready) < places:
                self._begin_job(job)
            else:
                return

    def _begin_job(self, job: Job) -> None:
        row = Row(job, self._surroundings)
        if self._prepares:
            self._jobs.move(job, Stage.PREPARING)
            self._begin_work(row, self._prepare(row))
        else:
            self._make_ready(row, job.request.input)

    def _make_ready(self, row: Row, item: Any) -> None:
        row.task = Task(item, row)
        self._jobs.move(row.job, Stage.READY)
        heapq.heappush(self._ready, (row.job.priority, row))

    async def _prepare(self, row: Row) -> None:
        limit_s = self._config.prepare_timeout_s
        stall = self._jobs.timers.call_later(STALLED_AFTER_S, self._stall, row)
        try:
            async with asyncio.timeout(limit_s) as limit:
                item = await self._handler.preprocess(row.job.request.input, row)
        except TimeoutError:
            if limit.expired():
                raise PrepareTimeout(f"preparing the input took longer than {limit_s:g} s") from None
            raise
        except (SystemExit, KeyboardInterrupt) as error:  # a task would hand these on to the event loop
            raise contained(error) from error
        finally:
            stall.cancel()
        if row.current:
            self._make_ready(row, item)

    def _stall(self, row: Row) -> None:
        """Let another job prepare in the place of one that takes long; try again where too many do."""
        if not row.current or row.job.stage is not Stage.PREPARING:
            return
        if self._jobs.count(Stage.STALLED) < STALLED_PER_PLACE * self._prefetch:
            self._jobs.move(row.job, Stage.STALLED)
            self._jobs.changed.set()
        else:
            self._jobs.timers.call_later(STALLED_AFTER_S, self._stall, row)

    # The model

    def _fill_model(self) -> None:
        """Hand ready rows to the model as far as it has room, best first."""
        if self._awaits_companions():
            return
        rows = [heapq.heappop(self._ready)[1] for _ in range(min(self._room(), len(self._ready)))]
        if rows:
            for row in rows:
                self._jobs.start(row.job)
            self._on_model.join(rows)
            self._begin_preparing()

    def _room(self) -> int:
        """How many rows may join now; a slow end must not pile up results.

        What goes to a caller's bucket is not counted, or a silent store would hold the model: its bytes are bounded.
        """
        return min(self._on_model.room, self._prefetch - self._jobs.count(Stage.FINISHING) + self._sending)

    def _awaits_companions(self) -> bool:
        """Whether an idle model waits for more, up to ``batch_wait_s`` after the first."""
        wait_s, ready = self._config.batch_wait_s, len(self._ready)
        if wait_s == 0 or ready == 0 or ready >= self._on_model.limit or self._on_model:
            self._companions_until = None
            return False
        if self._companions_until is None:
            self._companions_until = self._jobs.now() + wait_s
            self._jobs.timers.call_later(wait_s, asyncio.Event.set, self._jobs.changed)
        return self._jobs.now() < self._companions_until

    # Finishing

    def _settle(self) -> None:
        """End or finish the rows that the model has answered."""
        for row, result in self._on_model.results():
            if row.current:
                self._settle_row(row, result)

    def _settle_row(self, row: Row, result: Any) -> None:
        if isinstance(result, Exception):
            row.fail(result)
            return
        try:
            output = None if self._shapes else self._outputs.pack_light(result, row.job.request.destination)
        except Exception as error:
            row.fail(error)
            return
        if output is not None:
            row.complete(output)
        else:
            self._jobs.move(row.job, Stage.FINISHING)
            self._begin_work(row, self._finish(row, result))

    async def _finish(self, row: Row, result: Any) -> None:
        output = await row.run_in_pool(self._shape, result, row.job.request.destination)
        if isinstance(output, Packed):
            del result  # the files are in the output now; what waits for a store is bounded by their bytes
            output = await self._store(output, row.job)
        row.complete(output)

    async def _store(self, packed: Packed, job: Job) -> JobOutput:
        if job.request.destination is None:
            return await self._outputs.store(packed, job)
        self._sending += 1
        self._jobs.changed.set()
        try:
            return await self._outputs.store(packed, job)
        finally:
            self._sending -= 1

    def _shape(self, result: Any, destination: Destination | None) -> JobOutput | Packed:
        return self._outputs.pack(self._handler.postprocess(result), destination)

    # Work beside the loop

    def _begin_work(self, row: Row, work: Coroutine[Any, Any, None]) -> None:
        row.work = asyncio.get_running_loop().create_task(work)
        self._at_work.add(row)
        row.work.add_done_callback(partial(self._end_work, row))

    def _end_work(self, row: Row, work: asyncio.Task[None]) -> None:
        """Fail the row with whatever its work raised, a library's own cancellation included."""
        row.work = None
        self._at_work.discard(row)
        if work.cancelled():
            if self._running:  # ours came after the job's end, so this ends it only if a library cancelled itself
                finishing = row.job.stage is Stage.FINISHING
                row.fail(JobFailed(f"{'finishing the output' if finishing else 'preparing the input'} was interrupted"))
        elif (error := work.exception()) is not None:
            row.fail(contained(error))
        self._jobs.changed.set()
