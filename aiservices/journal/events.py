"""What the journal is told of a job, in the order in which it happens.

Times are seconds since the epoch, since the loop's clock ends with the process. What the caller sent is kept as plain
JSON values and encoded on the journal's own thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """Costs a fifth of an attrs class to make, which each job pays four times."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, 'job_id', '')})"  # what callers sent stays out of logs


class StoredOutput(_Told, frozen=True, kw_only=True):
    """What a COMPLETED job made.

    Attributes:
        fields: JSON of the answer, without its files.
        files: name, media type and bytes of each file that goes along.
    """

    fields: bytes
    files: tuple[tuple[str, str, bytes], ...] = ()


class Accepted(_Told, frozen=True, kw_only=True):
    """A job was accepted; its caller gets its id once this is written.

    Attributes:
        sequence: place in the order of acceptance, over all services.
        request: what makes the request again: input, limits, webhook, idempotency key, tenant and name of the key.
        secret: the part of the request that is kept encrypted only (``s3Config``).
    """

    job_id: str
    service: str
    sequence: int
    at: float
    request: Mapping[str, Any]
    secret: Mapping[str, Any] | None = None


class Started(_Told, frozen=True, kw_only=True):
    """The model took a job."""

    job_id: str
    attempt: int
    at: float


class Ended(_Told, frozen=True, kw_only=True):
    """A job ended.

    Attributes:
        status: the word that callers see.
        started_at: when the model took it; None if it never did.
        webhook_due: whether a delivery has to follow.
    """

    job_id: str
    attempt: int
    status: str
    at: float
    started_at: float | None = None
    output: StoredOutput | None = None
    error: str | None = None
    webhook_due: bool = False


class Requeued(_Told, frozen=True, kw_only=True):
    """A job waits again: somebody retried it, or the process stopped before it ended."""

    job_id: str
    attempt: int
    at: float


class Delivered(_Told, frozen=True, kw_only=True):
    """The webhook of an end arrived, or was given up for good: it is not sent again."""

    job_id: str
    attempt: int


class Forgotten(_Told, frozen=True, kw_only=True):
    """A job's retention is over."""

    job_id: str


Event = Accepted | Started | Ended | Requeued | Delivered | Forgotten
