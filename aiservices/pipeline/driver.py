"""Steps a handler's rows on the model's thread; between two steps rows join and leave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import attrs

from aiservices.errors import ModelBroken, contained
from aiservices.handler import Handler, Task
from aiservices.metrics import ServiceMetrics
from aiservices.model import ModelThread
from aiservices.pipeline.calls import LoopCalls

AnyTask = Task[Any]


@attrs.frozen
class StepReport:
    """What came of some rows on the model's thread.

    Attributes:
        results: rows that left the handler with a result or an error.
        freed: rows that were taken out, or never let in, because their jobs had ended.
        row_count: how many ran together.
        error: what failed for all of them together.
    """

    results: Sequence[tuple[AnyTask, Any]] = ()
    freed: Sequence[AnyTask] = ()
    row_count: int = 0
    error: Exception | None = None


class Driver:
    """Drives a handler as long as it has rows.

    The event loop writes what shall happen (:meth:`join`, :meth:`leave`); :meth:`_drive` runs on the model's thread,
    reads that before each step and reports what came out. ``_lock`` guards what was written and the decision to stop
    driving, nothing else.

    Args:
        handler: a loaded one.
        thread: the model's.
        calls: takes reports to the loop.
        report: told on the loop what came of rows, in order.
        metrics: counts the rows of each step.
    """

    def __init__(
        self,
        handler: Handler[Any, Any],
        thread: ModelThread,
        calls: LoopCalls,
        report: Callable[[StepReport], None],
        metrics: ServiceMetrics,
    ) -> None:
        self._handler = handler
        self._thread = thread
        self._calls = calls
        self._report = report
        self._metrics = metrics
        self._lock = threading.Lock()
        self._joining: list[AnyTask] = []
        self._leaving: list[AnyTask] = []
        self._driving = False

    def join(self, tasks: Sequence[AnyTask]) -> None:
        """Let rows join before the next step. On the loop."""
        self._write(tasks, ())

    def leave(self, tasks: Sequence[AnyTask]) -> None:
        """Take rows out before the next step. On the loop."""
        self._write((), tasks)

    def _write(self, joining: Sequence[AnyTask], leaving: Sequence[AnyTask]) -> None:
        with self._lock:
            self._joining += joining
            self._leaving += leaving
            if self._driving:
                return
            self._driving = True
        self._thread.submit(self._drive).add_done_callback(self._stopped)

    def _stopped(self, future: Future[None]) -> None:
        """On the model's thread: if driving ended by an error, nobody would ever step the rows again."""
        error = future.exception()
        if error is not None:
            self._post(StepReport(error=ModelBroken(f"the model's thread failed: {error!r}")))

    def _drive(self) -> None:
        """On the model's thread: step until no row is left and nobody waits to join."""
        rows: set[AnyTask] = set()
        while True:
            with self._lock:
                joining, self._joining = self._joining, []
                leaving, self._leaving = self._leaving, []
                if not (rows or joining or leaving):
                    self._driving = False
                    return
            if leaving:
                self._evict(rows, leaving)
            if joining:
                self._admit(rows, joining)
            if rows:
                self._step(rows)

    def _evict(self, rows: set[AnyTask], leaving: Sequence[AnyTask]) -> None:
        evicted = [task for task in leaving if task in rows]
        rows.difference_update(evicted)
        if not evicted:
            return
        try:
            self._handler.evict(evicted)
        except BaseException as error:
            self._fail(rows, contained(error))
        self._post(StepReport(freed=evicted))

    def _admit(self, rows: set[AnyTask], joining: Sequence[AnyTask]) -> None:
        ended = [task for task in joining if task.context.cancelled]
        if ended:
            self._post(StepReport(freed=ended))
        joining = [task for task in joining if task not in ended]
        if not joining:
            return
        try:
            self._handler.admit(joining)
        except BaseException as error:
            translated = self._thread.translate(contained(error))
            results = [(task, translated) for task in joining]
            self._post(StepReport(results, row_count=len(rows) + len(joining), error=translated))
        else:
            rows.update(joining)

    def _step(self, rows: set[AnyTask]) -> None:
        count = len(rows)
        self._metrics.rows(count)
        try:
            results = [(task, self._translated(result)) for task, result in self._handler.step()]
        except BaseException as error:
            self._fail(rows, contained(error))
            return
        if results:
            rows.difference_update(task for task, _ in results)
            self._post(StepReport(results, row_count=count))

    def _fail(self, rows: set[AnyTask], error: Exception) -> None:
        """No row can be trusted any more. The handler lets go of them before their memory is freed."""
        count, failed = len(rows), list(rows)
        rows.clear()
        try:
            self._handler.reset()
        except BaseException as second:
            broken = ModelBroken(f"the handler could not be reset after an error: {second}")
            self._post(StepReport([(task, broken) for task in failed], row_count=count, error=broken))
            return
        translated = self._thread.translate(error)
        self._post(StepReport([(task, translated) for task in failed], row_count=count, error=translated))

    def _translated(self, result: Any) -> Any:
        return self._thread.translate(result) if isinstance(result, Exception) else result

    def _post(self, report: StepReport) -> None:
        self._calls.post(partial(self._report, report))
