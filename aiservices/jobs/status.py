"""The states of a job that callers see, and the stages of its way behind them."""

from __future__ import annotations

from enum import Enum, StrEnum


class JobStatus(StrEnum):
    """RunPod's own words for the states of a job."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    __hash__ = str.__hash__  # as for Stage


ENDED = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.TIMED_OUT})
RETRYABLE = frozenset({JobStatus.FAILED, JobStatus.TIMED_OUT})


class Stage(Enum):
    """Where a job is: each stage shows as one status, so the two cannot disagree.

    Attributes:
        status: what callers see.
        waits: whether the model has not taken the job yet.
        ended: whether the job is over.
        over: whether nothing more happens to it in this process: it ended, or the next one goes on with it.
    """

    QUEUED = ("queued", JobStatus.IN_QUEUE)
    PREPARING = ("preparing", JobStatus.IN_QUEUE)
    STALLED = ("stalled", JobStatus.IN_QUEUE)
    """Preparing for so long that others may prepare in its place."""
    READY = ("ready", JobStatus.IN_QUEUE)
    RUNNING = ("running", JobStatus.IN_PROGRESS)
    FINISHING = ("finishing", JobStatus.IN_PROGRESS)
    LEFT = ("left", JobStatus.IN_QUEUE, True)
    """Waits in the journal for the next process."""
    COMPLETED = ("completed", JobStatus.COMPLETED)
    FAILED = ("failed", JobStatus.FAILED)
    CANCELLED = ("cancelled", JobStatus.CANCELLED)
    TIMED_OUT = ("timed out", JobStatus.TIMED_OUT)

    __hash__ = object.__hash__  # an enum's own is Python, and each step of a job looks stages up

    def __init__(self, label: str, status: JobStatus, leaves: bool = False) -> None:
        self.label = label
        self.status = status
        self.waits = status is JobStatus.IN_QUEUE and not leaves
        self.ended = status in ENDED
        self.over = self.ended or leaves
