"""Makes a job's end known: to the metrics, the log and the caller's server."""

from __future__ import annotations

from functools import partial

from aiservices.jobs.job import Job
from aiservices.jobs.output import encode_status
from aiservices.jobs.records import JobRecords
from aiservices.jobs.status import EndReason
from aiservices.jobs.tracing import record_spans
from aiservices.logs import get_logger
from aiservices.metrics import ServiceMetrics
from aiservices.webhooks import WebhookSender

LOOK_FOR_ROOM_S = 5.0
"""How often a webhook that had no room is tried again."""

log = get_logger(__name__)


class Announcer:
    """Tells of the ends of one service's jobs.

    Args:
        metrics: of the service.
        webhooks: tells callers' servers of an end.
        records: a webhook goes out once they hold the end.
    """

    def __init__(self, metrics: ServiceMetrics, webhooks: WebhookSender, records: JobRecords) -> None:
        self._metrics = metrics
        self._webhooks = webhooks
        self._records = records

    def ended(self, job: Job) -> None:
        """A job has just ended."""
        execution_s = None if job.started_at is None else job.execution_s
        reason = job.reason or EndReason.COMPLETED
        self._metrics.ended(job.status, reason, job.delay_s, execution_s)
        if job.request.caller.key:
            self._metrics.ended_for(*job.request.caller.key_id, job.status)
        record_spans(job)
        log.info(
            "job.finished",
            **job.log_fields,
            status=job.status.value,
            reason=reason.value,
            delay_s=round(job.delay_s, 3),
            execution_s=round(job.execution_s, 3),
            error=job.error,
        )
        if job.request.webhook is not None:
            self._records.when_written(job, partial(self.send_webhook, job, job.attempt))

    def send_webhook(self, job: Job, attempt: int) -> None:
        """Send the end of an attempt, unless the job was taken back or lives again meanwhile.

        Where too many are pending, that of a recorded job waits for room, for as long as the job is remembered.
        """
        url, tenant = job.request.webhook, job.request.caller.tenant
        if url is None or job.refused is not None or not job.ended or job.attempt != attempt:
            return
        size_bytes = job.output.size_bytes if job.output is not None else 0
        if job.recorded and not self._webhooks.has_room(url, size_bytes, tenant):
            job.jobs.timers.call_later(LOOK_FOR_ROOM_S, self._send_postponed, (job, attempt))
            return
        self._webhooks.send(
            url,
            partial(encode_status, job.status_object(), job.output),
            size_bytes,
            service=job.service,
            job_id=job.id,
            attempt=attempt,
            tenant=tenant,
            trace=job.trace,
            on_settled=partial(self._records.delivered, job, attempt),
        )

    def _send_postponed(self, postponed: tuple[Job, int]) -> None:
        job, attempt = postponed
        if not job.forgotten:
            self.send_webhook(job, attempt)
