"""Spans of a job: made at its end from the times that it has, so that a job on its way pays nothing for them.

::

    job                                  from acceptance to the end of this attempt; below the caller's span
    ├── waiting                          in the queue, and prepared but without a place in the model
    ├── preparing                        ``preprocess``
    ├── fetch                            each download; made by the fetcher, while it goes on
    ├── model                            on the model's thread
    ├── finishing                        ``postprocess`` and uploads
    └── webhook                          each attempt to tell of the end; made by the sender
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aiservices import spans
from aiservices.jobs.status import JobStatus, Stage
from aiservices.spans import Span

if TYPE_CHECKING:
    from aiservices.jobs.job import Job

_NAMES = {
    Stage.QUEUED: "waiting",
    Stage.PREPARING: "preparing",
    Stage.STALLED: "preparing",
    Stage.READY: "waiting",
    Stage.RUNNING: "model",
    Stage.FINISHING: "finishing",
}


def new_stage_times() -> dict[Stage, float] | None:
    """Return where the times of a new job's stages go; None where nobody traces."""
    return {} if spans.enabled() else None


def begin_span(job: Job) -> Span:
    """Begin the span of an attempt at a job, at the time when it was queued."""
    attributes: dict[str, str | int] = {
        "aiservices.service": job.service,
        "aiservices.job.id": job.id,
        "aiservices.job.attempt": job.attempt,
    }
    if job.request.caller.key:
        attributes["aiservices.key"] = job.request.caller.key
    began_s = job.submitted_at + _epoch_s(job)
    return spans.start("job", job.origin, kind="consumer", attributes=attributes, began_s=began_s)


def record_spans(job: Job) -> None:
    """End the span of an attempt that is over, with one below for each part of its way."""
    span = job.span
    if span is None:
        return
    epoch_s = _epoch_s(job)
    if span.recording:
        for name, began_at, ended_at in _parts(job):
            part = spans.start(name, span.trace, began_s=began_at + epoch_s)
            size = {"aiservices.batch.size": job.batch_size} if name == "model" and job.batch_size else None
            part.end(attributes=size, ended_s=ended_at + epoch_s)
    reason = "" if job.reason is None else job.reason.value
    span.end(
        attributes={"aiservices.job.status": job.status.value, "aiservices.job.reason": reason},
        error=reason if job.status in (JobStatus.FAILED, JobStatus.TIMED_OUT) else "",
        ended_s=_end(job) + epoch_s,
    )
    if job.stage_times is not None:
        job.stage_times.clear()


def _parts(job: Job) -> Iterator[tuple[str, float, float]]:
    """The parts of its way, one for stages in a row that have one name: name, begin and end on the loop's clock."""
    times = {Stage.QUEUED: job.submitted_at, **(job.stage_times or {})}
    begun = [(_NAMES[stage], at) for stage, at in times.items() if stage in _NAMES]
    parts = [(name, next(times)[1]) for name, times in itertools.groupby(begun, key=lambda part: part[0])]
    for (name, began_at), (_, ended_at) in itertools.pairwise([*parts, ("", _end(job))]):
        yield name, began_at, ended_at


def _end(job: Job) -> float:
    return job.jobs.now() if job.ended_at is None else job.ended_at


def _epoch_s(job: Job) -> float:
    """What to add to a time on the loop's clock to get seconds since the epoch."""
    return time.time() - job.jobs.now()
