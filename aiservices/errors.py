"""What can go wrong, in words that a caller can act on.

Each error of the core carries a ``code``. Transports translate codes (one table in the HTTP transport); the core knows
nothing of HTTP. The text of a :class:`ServiceError` is safe to show to any caller; any other exception is logged whole
and shown as "internal error" with the job's id.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar


class ServiceError(Exception):
    """Base of every error whose text may be shown to the caller."""

    code: ClassVar[str] = "failed"


class ConfigError(ServiceError):
    """A setting is wrong; the text names file, table and key and, where there is one, the nearest right word."""

    code = "config"


class InvalidInput(ServiceError):
    """The caller's input does not fit.

    Args:
        field: JSON path of the offending field, as ``$.image_url``.
        reason: what was expected, one line.
    """

    code = "invalid_input"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class FetchError(InvalidInput):
    """A URL that the caller gave could not be fetched, or what it holds is not what was asked for."""

    code = "fetch_failed"


class UnknownService(ServiceError):
    """No service of that name in the running profile; ``services`` lists those there are."""

    code = "unknown_service"

    def __init__(self, name: str, services: Sequence[str]) -> None:
        super().__init__(f"no service named {name!r}; there are: {', '.join(services)}")
        self.services = tuple(services)


class JobNotFound(ServiceError):
    """No job of that id is remembered: it never was, or its result has expired."""

    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__("job not found or expired")
        self.job_id = job_id


class Conflict(ServiceError):
    """The job's state does not allow the operation, or an idempotency key came with another request."""

    code = "conflict"


class StreamEnded(ServiceError):
    """The end of a cancelled job's stream was told before."""

    code = "stream_ended"


class QueueFull(ServiceError):
    """The service's queue is full, or too long for a job's time to live; try again after ``retry_after_s``."""

    code = "queue_full"

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class LimitReached(QueueFull):
    """The caller's key has what it may have; try again after ``retry_after_s``."""

    code = "limit_reached"


class Unavailable(ServiceError):
    """The service takes no jobs: it drains, or its model could not be loaded or broke.

    ``retry_after_s`` is None where waiting will not help.
    """

    code = "unavailable"

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Starting(ServiceError):
    """The jobs of an earlier process are still being restored; try again after ``retry_after_s``."""

    code = "starting"
    retry_after_s = 1.0
    """About what some thousand jobs take."""

    def __init__(self) -> None:
        super().__init__("the server is starting: jobs of an earlier process are being restored; try again")


class JobFailed(ServiceError):
    """A handler's own way to fail one job with a text the caller may read."""

    code = "failed"


class OutOfMemory(JobFailed):
    """The device ran out of memory while it worked on this job's batch."""

    code = "out_of_memory"


class ModelBroken(ServiceError):
    """The model's device is beyond repair in this process (a broken CUDA context): the process has to be replaced."""

    code = "model_broken"


def contained(error: BaseException) -> Exception:
    """Return an error of a library as one that fails its job and no more: SystemExit and Rust's panics are none."""
    return error if isinstance(error, Exception) else RuntimeError(f"a library raised {error!r}")


def nearest(word: str, right_words: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` or, where nothing is near, the list of right words."""
    words = list(right_words)
    found = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else f"; there are: {', '.join(words)}"
