"""One job: its identity, where it is, and its one way to end.

Stages, and who moves a job between them, always on the event loop::

    QUEUED -> PREPARING (-> STALLED) -> READY -> RUNNING -> FINISHING -> COMPLETED | FAILED | CANCELLED | TIMED_OUT
      |            |                      |         |           |            the pipeline moves it forward,
      +------------+----------------------+---------+-----------+--finish()--^
    any that lives --leave()--> LEFT                 (SIGTERM with a journal: the next process goes on with it)
    FAILED | TIMED_OUT --JobManager.retry()--> QUEUED      (the same id and input, a new attempt)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import attrs

from aiservices.errors import StreamEnded
from aiservices.jobs.output import JobOutput
from aiservices.jobs.request import JobRequest
from aiservices.jobs.signal import Signal
from aiservices.jobs.status import EndReason, JobStatus, Stage
from aiservices.jobs.stream import StreamBuffer
from aiservices.jobs.tracing import begin_span, new_stage_times, record_spans
from aiservices.spans import Span
from aiservices.timers import Timer
from aiservices.trace import Trace

if TYPE_CHECKING:
    from aiservices.jobs.manager import JobManager

Priority = tuple[int, int, int]


@attrs.define(eq=False, kw_only=True)
class Job:
    """One accepted job. Touched on the event loop only; it ends once, through :meth:`finish`.

    Attributes:
        jobs: the manager that keeps it.
        sequence: place in the order of submission, over all keys.
        priority: order in the queue, smallest first: class (warm-ups, normal, low), turn of its key, sequence.
        created_at: when it was accepted, in seconds since the epoch.
        stage: where it is; only its manager moves it.
        attempt: 1, and one more for each retry; results of earlier attempts are refused by it.
        output: what it made, for COMPLETED.
        error: one line of text, for FAILED and TIMED_OUT.
        reason: why it ended, in a word; None while it lives, and for one that ended in an earlier process.
        progress: 0 to 1, None until the handler reports some.
        wait_reason: why it stands still although the model took it; None while it goes on.
        submitted_at, started_at, ended_at: seconds of the event loop's clock.
        recorded: whether the journal knows it.
        restored: whether it comes from an earlier process.
        memory_only: whether it could not be recorded although there is a journal.
        position: of its acceptance, end or retry in the journal, whichever came last.
        forgotten: whether nobody can ask for it any more.
        refused: why its acceptance could not be recorded; it was taken back then.
        timer: of the time to live, then of the time limit; None once it has ended.
        batch_size: rows that were in the model with it in its last step, itself included; None if it never got there.
        stage_times: when each stage of this attempt began, on the loop's clock; None where nobody traces.
    """

    id: str
    jobs: JobManager = attrs.field(repr=False)
    request: JobRequest
    stream: StreamBuffer = attrs.field(repr=False)
    sequence: int
    priority: Priority = (0, 0, 0)
    submitted_at: float
    created_at: float = attrs.field(factory=time.time)
    stage: Stage = Stage.QUEUED
    attempt: int = 1
    output: JobOutput | None = None
    error: str | None = None
    reason: EndReason | None = None
    progress: float | None = None
    wait_reason: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    timer: Timer | None = None
    batch_size: int | None = None
    stage_times: dict[Stage, float] | None = attrs.field(factory=new_stage_times, repr=False)
    recorded: bool = False
    restored: bool = False
    memory_only: bool = False
    position: int = 0
    forgotten: bool = False
    refused: str | None = None
    _has_ended: Signal = attrs.field(factory=Signal, repr=False, init=False)
    _has_news: Signal = attrs.field(factory=Signal, repr=False, init=False)
    _span: Span | None = attrs.field(default=None, repr=False, init=False)
    _end_was_read: bool = False

    @property
    def service(self) -> str:
        """Name of its service."""
        return self.jobs.service

    @property
    def status(self) -> JobStatus:
        """What callers see of its stage."""
        return self.stage.status

    @property
    def ended(self) -> bool:
        """Whether it is in one of its final states."""
        return self.stage.ended

    @property
    def timeout_s(self) -> float:
        """How long it may run, in seconds."""
        asked = self.request.timeout_s
        return self.jobs.config.timeout_s if asked is None else asked

    @property
    def ttl_s(self) -> float:
        """How long it may wait in the queue, in seconds."""
        asked = self.request.ttl_s
        return self.jobs.config.ttl_s if asked is None else asked

    @property
    def delay_s(self) -> float:
        """Seconds in the queue: until it started, or until it ended without having started."""
        until = self.started_at if self.started_at is not None else self.ended_at
        return (until if until is not None else self.jobs.now()) - self.submitted_at

    @property
    def execution_s(self) -> float:
        """Seconds since it started, until it ended; 0 if it never started."""
        if self.started_at is None:
            return 0.0
        return (self.ended_at if self.ended_at is not None else self.jobs.now()) - self.started_at

    @property
    def size_bytes(self) -> int:
        """Memory that remembering it costs: input, output and unread stream."""
        made = self.output.size_bytes if self.output is not None else 0
        return self.request.input_bytes + made + self.stream.size_bytes

    @property
    def trace(self) -> Trace:
        """Where what is done for it belongs in a trace: below its own span, where spans are made."""
        return self.origin if self.span is None else self.span.trace

    @property
    def origin(self) -> Trace:
        """Where it belongs in a trace: the caller's or, where none was given, one of its own that its id tells."""
        return self.request.trace or Trace(self.id.replace("-", ""))

    @property
    def span(self) -> Span | None:
        """Its span, begun when first asked for; None where nobody traces, or it ended in an earlier process."""
        if self._span is None and self.stage_times:
            self._span = begin_span(self)
        return self._span

    @property
    def log_fields(self) -> dict[str, str]:
        """What each of its lines in the log names; nothing of its input."""
        named = {"service": self.service, "job": self.id}
        if self.request.request_id:
            named["request"] = self.request.request_id
        if self.request.trace is not None:
            named["trace"] = self.request.trace.trace_id
        if self.request.caller.key:
            named["key"] = self.request.caller.key
        return named

    def enter(self, stage: Stage) -> None:
        """Note where it is from now on; for :meth:`JobManager.move` alone."""
        self.stage = stage
        if self.stage_times is not None:
            self.stage_times[stage] = self.jobs.now()

    def is_current(self, attempt: int) -> bool:
        """Whether that attempt is the one that may still end the job. Readable from any thread."""
        return attempt == self.attempt and not self.stage.over

    def finish(
        self,
        stage: Stage,
        *,
        reason: EndReason,
        attempt: int | None = None,
        output: JobOutput | None = None,
        error: str | None = None,
    ) -> bool:
        """End the job; the only way to.

        Args:
            stage: one of the final ones.
            reason: why, in a word.
            attempt: refuse the result unless this attempt is the running one; None ends whichever runs.
            output: what it made, for COMPLETED.
            error: one line of text, for FAILED and TIMED_OUT.

        Returns:
            Whether this call was the one that ended it.
        """
        assert stage.ended, stage
        if self.ended or (attempt is not None and attempt != self.attempt):
            return False
        self.output, self.error, self.reason, self.ended_at = output, error, reason, self.jobs.now()
        self.jobs.ended(self, stage, interrupted=attempt is None)
        self._has_ended.fire()
        self._has_news.fire()
        return True

    def leave(self) -> None:
        """Leave the job to the next process, and wake everyone who waits for it in this one."""
        self.jobs.left(self)
        record_spans(self)
        self.started_at = self.progress = None
        self._has_ended.fire()
        self._has_news.fire()

    async def wait_recorded(self) -> None:
        """Wait until the job's acceptance, or its end, survives the process; at once where there is no journal.

        Raises:
            Unavailable: the acceptance could not be recorded; there is no such job any more.
        """
        if self.recorded or self.refused is not None:
            await self.jobs.records.wait(self)

    async def wait_end(self, timeout_s: float) -> None:
        """Wait until it is over or the time is up. The waiter's own end changes nothing for the job."""
        if not self.stage.over:
            await self._has_ended.wait(self.jobs.timers, timeout_s)

    async def wait_news(self, timeout_s: float) -> None:
        """Wait until it is over, its stream has a chunk, or the time is up."""
        if not (self.stage.over or len(self.stream)):
            await self._has_news.wait(self.jobs.timers, timeout_s)

    def begin_again(self) -> None:
        """Forget what the last attempt left; for :meth:`JobManager.retry`."""
        self.attempt += 1
        self._span = self.batch_size = None
        self.stage_times = new_stage_times()
        self.output = self.error = self.reason = self.progress = self.started_at = self.ended_at = None
        self.wait_reason = None
        self.submitted_at, self._end_was_read = self.jobs.now(), False
        self.stream.clear()

    def add_chunk(self, attempt: int, chunk: Any) -> None:
        """Append one chunk to the stream; one of an attempt that is over is dropped."""
        if self.is_current(attempt):
            self.stream.append(chunk)
            self._has_news.fire()

    def set_progress(self, attempt: int, fraction: float) -> None:
        """Note how much is done, 0 to 1; a report of an attempt that is over is dropped."""
        if self.is_current(attempt):
            self.progress = min(1.0, max(0.0, fraction))

    def set_wait_reason(self, attempt: int, reason: str | None) -> None:
        """Note why the model lets it stand still, or that it goes on; of an attempt that is over it is dropped."""
        if self.is_current(attempt):
            self.wait_reason = reason

    def check_stream(self) -> None:
        """Make sure that there may be something to read.

        Raises:
            StreamEnded: it was cancelled and a reader has been told so: RunPod's Python client would ask for ever.
        """
        if self._end_was_read:
            raise StreamEnded("the job was cancelled and its stream has been read to the end")

    def read_stream(self) -> list[Any]:
        """Take the unread chunks."""
        self._end_was_read = self.stage is Stage.CANCELLED
        return self.stream.drain()

    def status_object(self) -> dict[str, Any]:
        """The job as the wire shows it, without its output: whole milliseconds, never a null value."""
        shown: dict[str, Any] = {"id": self.id, "status": self.status.value}
        if not self.stage.waits:
            shown["delayTime"] = _milliseconds(self.delay_s)
        if self.ended:
            shown["executionTime"] = _milliseconds(self.execution_s)
        if self.started_at is not None:
            shown["workerId"] = self.jobs.worker_id
        if self.attempt > 1:
            shown["retries"] = self.attempt - 1
        if self.error is not None:
            shown["error"] = self.error
        elif self.status is JobStatus.IN_PROGRESS:
            if self.progress is not None:
                shown["output"] = {"progress": self.progress}
            if self.wait_reason is not None:
                shown["reason"] = self.wait_reason
        return shown


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
