"""The two times that end a job: to wait at most so long, and to run at most so long. One timer each, never both."""

from __future__ import annotations

from aiservices.jobs.job import Job
from aiservices.jobs.status import EndReason, Stage
from aiservices.timers import Timers


def limit_waiting(job: Job, timers: Timers) -> None:
    """End the job as TIMED_OUT unless it starts within its time to live, which counts from its submission."""
    _set(job, timers, job.submitted_at + job.ttl_s - job.jobs.now())


def limit_running(job: Job, timers: Timers) -> None:
    """End the job as TIMED_OUT unless it ends within its time limit from now on."""
    _set(job, timers, job.timeout_s)


def lift(job: Job) -> None:
    """End it at no time any more."""
    if job.timer is not None:
        job.timer.cancel()
        job.timer = None


def _set(job: Job, timers: Timers, delay_s: float) -> None:
    lift(job)
    job.timer = timers.call_later(delay_s, _time_out, job)


def _time_out(job: Job) -> None:
    if job.stage.waits:
        reason, error = EndReason.TTL, f"not started within its time to live of {job.ttl_s:g} s"
    else:
        reason, error = EndReason.TIMEOUT, f"execution timed out after {job.timeout_s:g} s"
    job.finish(Stage.TIMED_OUT, reason=reason, error=error)
