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


class EndReason(StrEnum):
    """Why a job ended, for metrics, log and traces: a few words, whatever its error says."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    """Its caller asked for that, or hung up."""
    NOT_RECORDED = "not_recorded"
    """It was taken back, for its acceptance could not be written."""
    TTL = "ttl"
    """It was not started within its time to live."""
    TIMEOUT = "timeout"
    """It ran for longer than its limit."""
    INVALID_INPUT = "invalid_input"
    """The handler found that its input does not fit."""
    FETCH_FAILED = "fetch_failed"
    """A URL in its input could not be fetched."""
    PREPARE_TIMEOUT = "prepare_timeout"
    """Preparing it took too long."""
    FAILED = "failed"
    """The handler, or the way of its output, failed it with a text of its own."""
    INTERNAL_ERROR = "internal_error"
    """Something raised what nobody expected; the log has it whole."""
    OUT_OF_MEMORY = "out_of_memory"
    MODEL_BROKEN = "model_broken"
    """The device is beyond repair, or the model's thread hangs."""
    LOAD_FAILED = "load_failed"
    """The model could not be loaded."""
    NOT_RESTORED = "not_restored"
    """After a new start it could not go on: too many attempts, or an input that no longer fits."""
    SHUTDOWN = "shutdown"
    """The process ended before the job did, and no journal keeps it."""


ENDED = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.TIMED_OUT})
RETRYABLE = frozenset({JobStatus.FAILED, JobStatus.TIMED_OUT})


class Stage(Enum):
    """Where a job is: each stage shows as one status, so the two cannot disagree.

    Attributes:
        status: what callers see.
        waits: whether the model has not taken the job yet.
        busy: whether it is worked on: being prepared, on the model, or being finished.
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
        self.busy = not self.over and label != "queued"
