"""One job: its identity, its states and its one way to end.

States and who moves a job between them, always on the event loop::

    IN_QUEUE --start()--> IN_PROGRESS --finish()--> COMPLETED | FAILED | CANCELLED | TIMED_OUT
        \\______________________finish()______________/
    FAILED | TIMED_OUT --requeue()--> IN_QUEUE      (the same id and input, a new attempt)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any

import attrs
import msgspec
from msgspec import Meta


class JobStatus(StrEnum):
    """RunPod's own words for the states of a job."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


ENDED = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.TIMED_OUT})
RETRYABLE = frozenset({JobStatus.FAILED, JobStatus.TIMED_OUT})


@attrs.frozen(kw_only=True)
class Policy:
    """What the caller asked for beside the input.

    Attributes:
        timeout_s: how long the job may run once the model took it.
        ttl_s: how long it may wait in the queue, from submission.
        low_priority: whether it waits behind every job of normal priority.
    """

    timeout_s: float
    ttl_s: float
    low_priority: bool = False


class Destination(msgspec.Struct, frozen=True, rename="camel"):
    """RunPod's ``s3Config``: the caller's own bucket for this job's files."""

    access_id: Annotated[str, Meta(min_length=1, max_length=256)]
    access_secret: Annotated[str, Meta(min_length=1, max_length=1024)]
    bucket_name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$", description="Name of the bucket.")]
    endpoint_url: Annotated[str, Meta(min_length=1, max_length=1024, description="The store, as an http or https URL.")]
    object_path: Annotated[str, Meta(max_length=512, description="Folder in the bucket.")] = ""

    def __repr__(self) -> str:
        return f"Destination({self.bucket_name!r})"  # never the keys


@attrs.frozen
class OutputFile:
    """A file of an output on its way into a bucket.

    Attributes:
        name: the output's field.
    """

    name: str
    media_type: str
    data: bytes = attrs.field(repr=False)


@attrs.frozen
class Packed:
    """An output without its large files, and these."""

    rest: Mapping[str, Any] = attrs.field(repr=False)
    files: tuple[OutputFile, ...]


class StreamBuffer:
    """The chunks of a stream that nobody has taken yet, bounded by bytes; the oldest give way.

    Args:
        max_bytes: bound on the JSON of all chunks kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._chunks: deque[bytes] = deque()
        self._bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._chunks)

    def append(self, chunk: bytes) -> None:
        """Add one JSON-encoded chunk; drop the oldest ones until the bound holds again."""
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        while self._bytes > self._max_bytes and len(self._chunks) > 1:
            self._bytes -= len(self._chunks.popleft())
            self.dropped += 1

    def drain(self) -> list[msgspec.Raw]:
        """Take every chunk out, oldest first."""
        chunks = [msgspec.Raw(chunk) for chunk in self._chunks]
        self.clear()
        return chunks

    def clear(self) -> None:
        """Forget what nobody took."""
        self._chunks.clear()
        self._bytes = 0

    @property
    def size_bytes(self) -> int:
        """How much JSON is kept, in bytes."""
        return self._bytes


def _unset(job: Job) -> None:
    """Do nothing: the place of a callback that nobody set."""


@attrs.define(eq=False, kw_only=True)
class Job:
    """One accepted job. Touched on the event loop only; it ends once, through :meth:`finish`.

    Attributes:
        input: the validated input; None once it cannot be needed any more.
        input_bytes: size of the request that brought it.
        attempt: 1, and one more for each retry; results of earlier attempts are refused by it.
        output: JSON of the output, encoded once, off the loop.
        error: one line of text, for FAILED and TIMED_OUT.
        progress: 0 to 1, None until the handler reports some.
        submitted_at, started_at, ended_at: seconds of the manager's clock.
        delivered_end: whether a stream reader has been told that the job was cancelled.
    """

    id: str = attrs.field(on_setattr=attrs.setters.frozen)
    service: str = attrs.field(on_setattr=attrs.setters.frozen)
    policy: Policy = attrs.field(on_setattr=attrs.setters.frozen)
    clock: Callable[[], float] = attrs.field(on_setattr=attrs.setters.frozen)
    stream: StreamBuffer = attrs.field(on_setattr=attrs.setters.frozen)
    sequence: int = attrs.field(on_setattr=attrs.setters.frozen)
    input: Any
    input_bytes: int = 0
    webhook: str | None = None
    destination: Destination | None = None
    idempotency_key: str | None = None
    submitted_at: float
    worker_id: str = ""
    status: JobStatus = JobStatus.IN_QUEUE
    attempt: int = 1
    output: bytes | None = None
    error: str | None = None
    progress: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    delivered_end: bool = False
    done: asyncio.Event = attrs.field(factory=asyncio.Event)
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)
    on_end: Callable[[Job], None] = _unset

    @property
    def ended(self) -> bool:
        """Whether the job is in one of its final states."""
        return self.status in ENDED

    @property
    def delay_s(self) -> float:
        """Seconds in the queue: until it started, or until it ended without having started."""
        until = self.started_at if self.started_at is not None else self.ended_at
        return (until if until is not None else self.clock()) - self.submitted_at

    @property
    def execution_s(self) -> float:
        """Seconds since it started, until it ended; 0 if it never started."""
        if self.started_at is None:
            return 0.0
        return (self.ended_at if self.ended_at is not None else self.clock()) - self.started_at

    @property
    def size_bytes(self) -> int:
        """Memory that remembering this job costs: input, output and unread stream."""
        return self.input_bytes + len(self.output or b"") + self.stream.size_bytes

    @property
    def priority(self) -> tuple[int, int]:
        """Order in the queue, smallest first: normal before low, then order of submission."""
        return (1 if self.policy.low_priority else 0, self.sequence)

    def is_current(self, attempt: int) -> bool:
        """Whether that attempt is the one that may still end the job."""
        return attempt == self.attempt and not self.ended

    def start(self, worker_id: str) -> None:
        """The model takes the job: IN_QUEUE to IN_PROGRESS."""
        assert self.status is JobStatus.IN_QUEUE, self.status
        self.status = JobStatus.IN_PROGRESS
        self.worker_id = worker_id
        self.started_at = self.clock()

    def finish(
        self,
        status: JobStatus,
        *,
        attempt: int | None = None,
        output: bytes | None = None,
        error: str | None = None,
    ) -> bool:
        """End the job; the only way to.

        Args:
            status: one of the final states.
            attempt: refuse the result unless this attempt is the running one; None ends whichever runs.
            output: JSON of the output, for COMPLETED.
            error: one line of text, for FAILED and TIMED_OUT.

        Returns:
            Whether this call was the one that ended it.
        """
        assert status in ENDED, status
        if self.ended or (attempt is not None and attempt != self.attempt):
            return False
        self.status, self.output, self.error = status, output, error
        self.ended_at = self.clock()
        if status not in RETRYABLE:
            self.input, self.input_bytes, self.destination = None, 0, None
        self.on_end(self)
        self.done.set()
        self.changed.set()
        return True

    def requeue(self) -> None:
        """Put a FAILED or TIMED_OUT job back to IN_QUEUE as a new attempt."""
        assert self.status in RETRYABLE, self.status
        self.status, self.attempt = JobStatus.IN_QUEUE, self.attempt + 1
        self.output = self.error = self.progress = self.started_at = self.ended_at = None
        self.submitted_at, self.worker_id, self.delivered_end = self.clock(), "", False
        self.stream.clear()
        self.done.clear()
        self.changed.clear()

    def add_chunk(self, attempt: int, chunk: bytes) -> None:
        """Append one JSON-encoded chunk to the stream; one of an attempt that is over is dropped."""
        if self.is_current(attempt):
            self.stream.append(chunk)
            self.changed.set()

    def set_progress(self, attempt: int, fraction: float) -> None:
        """Note how much is done, 0 to 1; a report of an attempt that is over is dropped."""
        if self.is_current(attempt):
            self.progress = min(1.0, max(0.0, fraction))

    def take_chunks(self) -> list[msgspec.Raw]:
        """Take the stream's unread chunks."""
        chunks = self.stream.drain()
        if not self.ended:
            self.changed.clear()
        return chunks

    def status_object(self) -> dict[str, Any]:
        """The job as the wire shows it: whole milliseconds, never a null value."""
        shown: dict[str, Any] = {"id": self.id, "status": self.status.value}
        if self.status is not JobStatus.IN_QUEUE:
            shown["delayTime"] = _milliseconds(self.delay_s)
        if self.ended:
            shown["executionTime"] = _milliseconds(self.execution_s)
        if self.worker_id:
            shown["workerId"] = self.worker_id
        if self.attempt > 1:
            shown["retries"] = self.attempt - 1
        return {**shown, **self._result()}

    def _result(self) -> Mapping[str, Any]:
        if self.output is not None:
            return {"output": msgspec.Raw(self.output)}
        if self.error is not None:
            return {"error": self.error}
        if self.status is JobStatus.IN_PROGRESS and self.progress is not None:
            return {"output": {"progress": self.progress}}
        return {}


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
