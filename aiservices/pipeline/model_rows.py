"""The rows that the model's thread has, as the event loop sees them: a place is free once the thread has let go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
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
from aiservices.timers import Timer

log = get_logger(__name__)


class ModelRows:
    """Lets rows join and leave a model, and tells what came of them. Lives on the event loop.

    Args:
        handler: the service's handler.
        config: most rows at once, and when a model counts as hung.
        jobs: woken when the model's thread reports.
        thread: the model's.
        calls: carries the thread's reports to the loop.
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
        self._watching: Timer | None = None
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
        for row in rows:
            row.started_at = self._jobs.now()
        tasks = {row.task: row for row in rows if row.task is not None}
        self._rows.update(tasks)
        self._jobs.records.when_may_run([row.job for row in rows], partial(self._driver.join, list(tasks)))

    def let_go(self) -> None:
        """Take rows out whose jobs have ended meanwhile."""
        leaving = {task: row for task, row in self._rows.items() if not row.current and row.leaving_since is None}
        if not leaving:
            return
        for row in leaving.values():
            row.leaving_since = self._jobs.now()
        self._driver.leave(list(leaving))
        self._watch()

    def results(self) -> Iterator[tuple[Row, Any]]:
        """Take what came of rows since the last call: each row, and its result or error.

        Raises:
            ModelBroken: the device is beyond repair, or the model's thread hangs.
        """
        reports, self._reports = self._reports, []
        for report in reports:
            self._adapt_limit(report)
            for task in report.freed:
                if (freed := self._rows.pop(task, None)) is not None:
                    freed.task = None
            for task, result in report.results:
                if isinstance(result, ModelBroken):
                    raise result
                row = self._rows.pop(task, None)
                if row is not None:
                    row.task = None
                    if row.current:
                        row.job.batch_size = report.row_count
                    yield row, result
            if isinstance(report.error, ModelBroken):
                raise report.error

    def forget(self) -> None:
        """Have the model's thread let go of every row, and forget them: nobody waits for one any more."""
        if self._rows:
            self._driver.leave(list(self._rows))
        for row in self._rows.values():
            row.task = None
        self._rows.clear()
        self._reports.clear()
        self._watch()

    def _on_report(self, report: StepReport) -> None:
        self._reports.append(report)
        self._jobs.changed.set()

    def _adapt_limit(self, report: StepReport) -> None:
        """Out of memory halves the rows that run together; each success lets one more in again."""
        troubles = (report.error, *(result for _, result in report.results))
        if any(isinstance(trouble, OutOfMemory) for trouble in troubles):
            self.limit = max(1, report.row_count // 2)
            log.warning("model.out_of_memory", service=self._config.name, rows=report.row_count, limit=self.limit)
        elif report.error is None and report.row_count >= self.limit:
            self.limit = min(self._config.max_batch_size, self.limit + 1)

    def _watch(self) -> None:
        """See to it that the model's thread lets go of rows whose jobs have ended."""
        if self._watching is not None:
            self._watching.cancel()
        due_at = self._hangs_at()
        delay_s = None if due_at is None else due_at - self._jobs.now()
        self._watching = None if delay_s is None else self._jobs.timers.call_later(delay_s, ModelRows._look, self)

    def _hangs_at(self) -> float | None:
        """When the model counts as hung, unless it lets go of a row before; None if it has to let go of none.

        ``hang_s`` after it was told to, and after the row's limit: the service's own at least, for no caller may call a
        slow model hung. One call answers a whole batch, so there the latest limit of all its rows counts.
        """
        leaving = [row for row in self._rows.values() if row.leaving_since is not None]
        if not leaving:
            return None
        if self._joins_midway:
            latest = min(max(self._limit_at(row), row.leaving_since or 0.0) for row in leaving)
        else:
            told_at = min(row.leaving_since or 0.0 for row in leaving)
            latest = max(told_at, *map(self._limit_at, self._rows.values()))
        return latest + self._config.hang_s

    def _limit_at(self, row: Row) -> float:
        return row.started_at + max(self._config.timeout_s, row.job.timeout_s)

    def _look(self) -> None:
        due_at = self._hangs_at()
        if due_at is None or due_at > self._jobs.now():
            self._watch()
            return
        reason = f"the model hangs: it did not let go of a job within {self._config.hang_s:g} s after its end (hang_s)"
        log.critical("model.hangs", service=self._config.name, reason=reason, stack=self._thread.stack())
        self._on_report(StepReport(error=ModelBroken(reason)))
