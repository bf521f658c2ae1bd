"""The jobs of one service: accepted, remembered, ended and forgotten, all in memory and all bounded."""

from __future__ import annotations

import hashlib
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs
import msgspec

from aiservices.errors import Conflict, JobNotFound, QueueFull
from aiservices.job import ENDED, RETRYABLE, Destination, Job, JobStatus, Policy, StreamBuffer
from aiservices.settings import ServiceConfig

QUEUE_FULL_RETRY_AFTER_S = 5.0


class TimerHandle(Protocol):
    """A timer that can be stopped."""

    def cancel(self) -> None:
        """Stop the timer; harmless once it fired."""


class Timers(Protocol):
    """The part of an event loop that keeps time (:class:`asyncio.AbstractEventLoop` is one)."""

    def time(self) -> float:
        """Monotonic seconds."""

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> TimerHandle:
        """Call back after ``delay`` seconds."""


@attrs.frozen(kw_only=True)
class Submission:
    """What the manager needs to accept one job.

    Attributes:
        input: the validated input.
        input_bytes: size of the request that brought it; counts against ``queue_bytes``.
        fingerprint: digest of the raw input, compared when an idempotency key comes again.
    """

    input: Any
    input_bytes: int
    policy: Policy
    webhook: str | None = None
    destination: Destination | None = None
    idempotency_key: str | None = None
    fingerprint: bytes = b""


def fingerprint(payload: Mapping[str, Any]) -> bytes:
    """Digest an input so that two requests with one idempotency key can be told apart."""
    return hashlib.blake2b(msgspec.json.encode(payload, order="deterministic"), digest_size=16).digest()


class JobManager:
    """Keeps every job of one service, from acceptance until it is forgotten. Lives on the event loop.

    Args:
        config: the service's bounds and times.
        timers: clock and timers, the event loop in production.
        on_queued: a job waits in the queue (accepted or retried).
        on_ended: a job ended, however it did.
    """

    def __init__(
        self,
        config: ServiceConfig,
        timers: Timers,
        *,
        on_queued: Callable[[Job], None],
        on_ended: Callable[[Job], None],
    ) -> None:
        self._config = config
        self._timers = timers
        self._on_queued = on_queued
        self._on_ended = on_ended
        self._jobs: dict[str, Job] = {}
        self._queued: dict[str, tuple[Job, int]] = {}
        self._running: dict[str, Job] = {}
        self._finished: OrderedDict[str, tuple[Job, int]] = OrderedDict()
        self._finished_bytes = 0
        self._queued_bytes = 0
        self._deadlines: dict[str, TimerHandle] = {}
        self._expiry: TimerHandle | None = None
        self._keys: dict[str, tuple[str, bytes]] = {}
        self._sequence = 0
        self.ended_counts: dict[JobStatus, int] = dict.fromkeys(ENDED, 0)
        self.retried_count = 0

    @property
    def queued_count(self) -> int:
        """Jobs IN_QUEUE."""
        return len(self._queued)

    @property
    def running_count(self) -> int:
        """Jobs IN_PROGRESS."""
        return len(self._running)

    @property
    def live_count(self) -> int:
        """Jobs that have not ended."""
        return len(self._queued) + len(self._running)

    @property
    def remembered_bytes(self) -> int:
        """Memory held by the results of ended jobs."""
        return self._finished_bytes

    def submit(self, submission: Submission) -> Job:
        """Accept a job, or return the one that the same idempotency key brought before.

        Raises:
            QueueFull: the queue's bound by count or bytes would be passed.
            Conflict: the idempotency key was used with another input.
        """
        known = self._by_key(submission)
        if known is not None:
            return known
        self._check_room(submission.input_bytes)
        self._sequence += 1
        job = Job(
            id=str(uuid.uuid4()),
            service=self._config.name,
            policy=submission.policy,
            clock=self._timers.time,
            stream=StreamBuffer(self._config.stream_buffer_bytes),
            sequence=self._sequence,
            input=submission.input,
            input_bytes=submission.input_bytes,
            webhook=submission.webhook,
            destination=submission.destination,
            idempotency_key=submission.idempotency_key,
            submitted_at=self._timers.time(),
            on_end=self._ended,
        )
        self._jobs[job.id] = job
        if submission.idempotency_key is not None:
            self._keys[submission.idempotency_key] = (job.id, submission.fingerprint)
        self._enqueue(job)
        return job

    def get(self, job_id: str) -> Job:
        """Return a remembered job.

        Raises:
            JobNotFound: it never was, or has been forgotten.
        """
        try:
            return self._jobs[job_id]
        except KeyError:
            raise JobNotFound(job_id) from None

    def start(self, job: Job, worker_id: str) -> None:
        """The model takes a queued job; its execution time begins to count."""
        self._leave_queue(job)
        job.start(worker_id)
        self._running[job.id] = job
        error = f"execution timed out after {job.policy.timeout_s:g} s"
        self._set_deadline(job, job.policy.timeout_s, error)

    def cancel(self, job_id: str) -> Job:
        """End a job as CANCELLED; one that has ended stays as it is."""
        job = self.get(job_id)
        job.finish(JobStatus.CANCELLED)
        return job

    def retry(self, job_id: str) -> Job:
        """Put a FAILED or TIMED_OUT job back in the queue under its own id and input.

        Raises:
            JobNotFound: it has been forgotten.
            Conflict: it is in another state.
            QueueFull: there is no room.
        """
        job = self.get(job_id)
        if job.status not in RETRYABLE:
            raise Conflict(f"only a FAILED or TIMED_OUT job can be retried; this one is {job.status.value}")
        self._check_room(job.input_bytes)
        _, size_bytes = self._finished.pop(job.id)
        self._finished_bytes -= size_bytes
        job.requeue()
        self.retried_count += 1
        self._enqueue(job)
        return job

    def purge(self) -> int:
        """End every queued job as CANCELLED; return how many."""
        return sum(job.finish(JobStatus.CANCELLED) for job in self.queued())

    def fail_all(self, error: str) -> None:
        """End every job that has not ended as FAILED with this reason."""
        for job in [*self._running.values(), *self.queued()]:
            job.finish(JobStatus.FAILED, error=error)

    def queued(self) -> list[Job]:
        """Jobs IN_QUEUE, oldest first."""
        return [job for job, _ in self._queued.values()]

    def queue_position(self, job: Job) -> int:
        """1 for the next job to be taken; 0 for one that does not wait. Looks at each queued job once."""
        if job.id not in self._queued:
            return 0
        return 1 + sum(other.priority < job.priority for other, _ in self._queued.values())

    def close(self) -> None:
        """Stop every timer."""
        for handle in self._deadlines.values():
            handle.cancel()
        self._deadlines.clear()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _by_key(self, submission: Submission) -> Job | None:
        known = self._keys.get(submission.idempotency_key or "")
        if known is None:
            return None
        job_id, digest = known
        if digest != submission.fingerprint:
            raise Conflict("this idempotency key was used with another input")
        return self._jobs[job_id]

    def _check_room(self, input_bytes: int) -> None:
        if len(self._queued) >= self._config.queue_size:
            raise QueueFull(f"the queue is full ({self._config.queue_size} jobs)", QUEUE_FULL_RETRY_AFTER_S)
        # One job always fits an empty queue: what it may weigh is the transport's bound.
        if self._queued and self._queued_bytes + input_bytes > self._config.queue_bytes:
            raise QueueFull(f"the queue is full ({self._config.queue_bytes} bytes of input)", QUEUE_FULL_RETRY_AFTER_S)

    def _enqueue(self, job: Job) -> None:
        self._queued[job.id] = (job, job.input_bytes)
        self._queued_bytes += job.input_bytes
        self._set_deadline(job, job.policy.ttl_s, f"not started within its time to live of {job.policy.ttl_s:g} s")
        self._on_queued(job)

    def _leave_queue(self, job: Job) -> None:
        _, input_bytes = self._queued.pop(job.id, (job, 0))
        self._queued_bytes -= input_bytes

    def _set_deadline(self, job: Job, delay_s: float, error: str) -> None:
        self._clear_deadline(job)
        self._deadlines[job.id] = self._timers.call_later(delay_s, self._time_out, job, error)

    def _clear_deadline(self, job: Job) -> None:
        handle = self._deadlines.pop(job.id, None)
        if handle is not None:
            handle.cancel()

    def _time_out(self, job: Job, error: str) -> None:
        job.finish(JobStatus.TIMED_OUT, error=error)

    def _ended(self, job: Job) -> None:
        self._clear_deadline(job)
        self._leave_queue(job)
        self._running.pop(job.id, None)
        self.ended_counts[job.status] += 1
        self._finished[job.id] = (job, job.size_bytes)
        self._finished_bytes += job.size_bytes
        self._on_ended(job)
        self._forget_surplus()
        self._schedule_expiry()

    def _forget_surplus(self) -> None:
        """Hold the bounds by count and bytes; the newest result stays, however large."""
        while len(self._finished) > max(1, self._config.keep_results) or (
            len(self._finished) > 1 and self._finished_bytes > self._config.keep_results_bytes
        ):
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        job_id, (job, size_bytes) = self._finished.popitem(last=False)
        self._finished_bytes -= size_bytes
        del self._jobs[job_id]
        if job.idempotency_key is not None:
            del self._keys[job.idempotency_key]

    def _schedule_expiry(self) -> None:
        """One timer for the oldest result serves all: they expire in the order in which they finished."""
        if self._expiry is None and self._finished:
            oldest, _ = next(iter(self._finished.values()))
            assert oldest.ended_at is not None
            due_s = oldest.ended_at + self._config.keep_results_s - self._timers.time()
            self._expiry = self._timers.call_later(max(0.0, due_s), self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now = self._timers.time()
        while self._finished:
            oldest, _ = next(iter(self._finished.values()))
            assert oldest.ended_at is not None
            if oldest.ended_at + self._config.keep_results_s > now:
                break
            self._forget_oldest()
        self._schedule_expiry()
