"""Whether a job may join the queue: there is room for it, and it would not outlive its time there."""

from __future__ import annotations

from aiservices.errors import QueueFull
from aiservices.jobs.job import Job
from aiservices.jobs.queue import JobQueue
from aiservices.jobs.rate import CompletionRate, bounded_s
from aiservices.jobs.request import JobRequest
from aiservices.quotas import Quotas
from aiservices.settings import ServiceConfig

ROOM_SHARE = 10
"""Who finds the queue full is told to come back when this part (1/10) of it is worked off: then there is room again."""


class Admission:
    """Refuses jobs at the door of one service's queue.

    Args:
        config: the queue's bounds.
        queue: what waits already.
        rate: how fast it is worked off.
        quotas: of the callers' keys.
    """

    def __init__(self, config: ServiceConfig, queue: JobQueue, rate: CompletionRate, quotas: Quotas) -> None:
        self._config = config
        self._queue = queue
        self._rate = rate
        self._quotas = quotas

    def check_room(self, request: JobRequest) -> None:
        """Raise QueueFull if the queue's bound by count or bytes, or a limit of the caller's key, would be passed."""
        config, queue = self._config, self._queue
        retry_after_s = self._rate.retry_after_s(max(1, len(queue) // ROOM_SHARE))
        if len(queue) >= config.queue_size:
            raise QueueFull(f"the queue is full ({config.queue_size} jobs)", retry_after_s)
        # One job always fits an empty queue: what it may weigh is the transport's bound.
        if queue and queue.size_bytes + request.input_bytes > config.queue_bytes:
            raise QueueFull(f"the queue is full ({config.queue_bytes} bytes of input)", retry_after_s)
        self._quotas.check(request.caller)

    def check_wait(self, job: Job) -> None:
        """Raise QueueFull for a job that would time out in the queue, as far as was measured."""
        wait_s = self._rate.wait_s(self._queue.place_of(job))
        if wait_s is not None and wait_s > job.ttl_s:
            reason = f"about {wait_s:.0f} s in the queue would pass the job's time to live of {job.ttl_s:g} s"
            raise QueueFull(reason, bounded_s(wait_s - job.ttl_s))
