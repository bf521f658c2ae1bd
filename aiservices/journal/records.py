"""What is read back of a job: everything that it takes to go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from aiservices.journal.events import StoredOutput

QUEUED = "queued"
"""State of a job that waits; also of one that was prepared."""

RUNNING = "running"
"""State of a job that the model had; one that ended has the word that callers see (``COMPLETED``)."""


@attrs.frozen(kw_only=True)
class JobRecord:
    """One remembered job. Times are seconds since the epoch.

    Attributes:
        sequence: place in the order of acceptance, as its ``Accepted`` said.
        accepted_at: when it was accepted.
        queued_at: when it was last queued: accepted, retried or queued again.
        request: what makes the request again.
        secret: the decrypted part of the request; None if it has none or cannot be read.
        state: :data:`QUEUED`, :data:`RUNNING`, or the final status as callers see it.
        attempt: the running or last attempt, from 1.
        webhook_due: whether the delivery for this attempt's end is outstanding.
        unreadable: why part of it could not be read, for its caller: it cannot run again; None for a whole record.
    """

    job_id: str
    service: str
    sequence: int
    accepted_at: float
    queued_at: float
    request: Mapping[str, Any] = attrs.field(repr=False)
    secret: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    state: str = QUEUED
    attempt: int = 1
    started_at: float | None = None
    ended_at: float | None = None
    output: StoredOutput | None = None
    error: str | None = None
    webhook_due: bool = False
    unreadable: str | None = None
