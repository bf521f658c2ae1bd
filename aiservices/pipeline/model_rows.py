"""The rows that the model's thread has, as the event loop sees them: a place is free once the thread has let go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from aiservices.errors import ModelBroken, OutOfMemory
from aiservices.handler import BatchHandler, Handler, Task
from aiservices.jobs import JobManager
from aiservices.logs import get_logger
from aiservices.metrics import ServiceMetrics
from aiservices.model import ModelThread
from aiservices.pipeline.calls import LoopCalls
from aiservices.pipeline.driver import Driver, StepReport
from aiservices.pipeline.row import Row
from aiservices.settings import ServiceConfig

log = get_logger(__name__)


class ModelRows:
    """Lets rows join and leave a model, and tells what came of them. Lives on the event loop.

    Args:
        handler: the service's handler.
        config: most rows at once, and when a model counts as hung.
        jobs: woken when the model's thread reports.
        thread: the model's.
        calls: brings the thread's reports to the loop.
        metrics: of the service.
    """

    def __init__(
        self,
        handler: Handler[Any, Any],
        config: ServiceConfig,
        jobs: JobManager,
        thread: ModelThread,
        calls: LoopCalls,
        metrics: ServiceMetrics,
    ) -> None:
        self._config = config
        self._jobs = jobs
        self._thread = thread
        self._driver = Driver(handler, thread, calls, self._on_report, metrics)
        self._joins_midway = not isinstance(handler, BatchHandler)
        self._rows: dict[Task[Any], Row] = {}
        self._reports: list[StepReport] = []
        self.limit = config.max_batch_size
        """Most rows at once; lower for a while after the device ran out of memory."""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def room(self) -> int:
        """How many rows may join now."""
        if self._rows and not self._joins_midway:
            return 0  # companions gather until the batch is done
        return self.limit - len(self._rows)

    def join(self, rows: Sequence[Row]) -> None:
        """Let prepared rows join: one hand-over for all of them."""
        tasks = {row.task: row for row in rows if row.task is not None}
        self._rows.update(tasks)
        self._driver.join(list(tasks))

    def let_go(self) -> None:
        """Take rows out whose jobs have ended meanwhile."""
        leaving = [task for task, row in self._rows.items() if not row.current and not row.leaving]
        if leaving:
            self._driver.leave(leaving)
        for task in leaving:
            self._rows[task].leaving = True
            self._watch(task)

    def results(self) -> Iterator[tuple[Row, Any]]:
        """Take what came of rows since the last call: each row, and its result or error.

        Raises:
            ModelBroken: the device is beyond repair, or the model's thread hangs.
        """
        reports, self._reports = self._reports, []
        for report in reports:
            self._adapt_limit(report)
            for task in report.freed:
                self._rows.pop(task, None)
            for task, result in report.results:
                if isinstance(result, ModelBroken):
                    raise result
                row = self._rows.pop(task, None)
                if row is not None:
                    row.task = None
                    yield row, result
            if isinstance(report.error, ModelBroken):
                raise report.error

    def forget(self) -> None:
        """Forget every row: the model works no more."""
        self._rows.clear()
        self._reports.clear()

    def _on_report(self, report: StepReport) -> None:
        self._reports.append(report)
        self._jobs.changed.set()

    def _adapt_limit(self, report: StepReport) -> None:
        """Out of memory halves the rows that run together; each success lets one more in again."""
        troubles = (report.error, *(result for _, result in report.results))
        if any(isinstance(trouble, OutOfMemory) for trouble in troubles):
            self.limit = max(1, report.rows // 2)
            log.warning("model.out_of_memory", service=self._config.name, rows=report.rows, limit=self.limit)
        elif report.error is None and report.rows >= self.limit:
            self.limit = min(self._config.max_batch_size, self.limit + 1)

    def _watch(self, task: Task[Any]) -> None:
        """See to it that the model's thread lets go of a row whose job has ended."""
        job = self._rows[task].job
        # The service's own limit counts, however short the caller's was: no caller may declare a slow model hung.
        limit_s = max(self._config.timeout_s, job.timeout_s)
        ran_s = 0.0 if job.started_at is None else self._jobs.now() - job.started_at
        self._jobs.timers.call_later(limit_s - ran_s + self._config.hang_s, self._check_hang, task)

    def _check_hang(self, task: Task[Any]) -> None:
        if task in self._rows:
            hang_s = self._config.hang_s
            reason = f"the model hangs: it held a job for {hang_s:g} s after the end of its time (hang_s)"
            log.critical("model.hangs", service=self._config.name, reason=reason, stack=self._thread.stack())
            self._on_report(StepReport(error=ModelBroken(reason)))
