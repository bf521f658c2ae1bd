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
        """Send the end of an attempt, unless the job was taken back or lives again meanwhile."""
        url = job.request.webhook
        if url is None or job.refused is not None or not job.ended or job.attempt != attempt:
            return
        self._webhooks.send(
            url,
            partial(encode_status, job.status_object(), job.output),
            job.output.size_bytes if job.output is not None else 0,
            service=job.service,
            job_id=job.id,
            attempt=attempt,
            tenant=job.request.caller.tenant,
            trace=job.trace,
            on_settled=partial(self._records.delivered, job, attempt),
        )
