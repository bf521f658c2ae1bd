"""What Prometheus may ask of the process. Every series has its name here and nowhere else.

Each :class:`Metrics` has a registry of its own, so that two of them (as in tests) never meet.
"""

from __future__ import annotations

import asyncio

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

DELAY_BUCKETS_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
"""Time in the queue: from an idle service to a backlog of hours."""

EXECUTION_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
"""Time on the model: up to the default ``timeout_s``."""

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)

LAG_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
"""Event loop lag: above 0.1 s something blocks the loop."""


class Metrics:
    """The process's counters, gauges and histograms, one method for each thing that can happen.

    ==========================================  ===================  ===============================================
    series                                      labels               what
    ==========================================  ===================  ===============================================
    ``aiservices_jobs_submitted_total``         service              jobs accepted
    ``aiservices_jobs_total``                   service, status      jobs ended, by final status
    ``aiservices_jobs_retried_total``           service              retries accepted
    ``aiservices_requests_rejected_total``      service, code        requests refused, by error code
    ``aiservices_job_delay_seconds``            service              time from submission to the model
    ``aiservices_job_execution_seconds``        service              time from the model to the end
    ``aiservices_queue_depth``                  service              jobs waiting
    ``aiservices_jobs_running``                 service              jobs on the model
    ``aiservices_batch_size``                   service              rows per batch
    ``aiservices_model_state``                  service, state       1 for the state the service is in, 0 for the others
    ``aiservices_webhooks_total``               service, result      webhook deliveries, by result
    ``aiservices_event_loop_lag_seconds``                            how late the event loop woke up
    ==========================================  ===================  ===============================================

    Beside them stand the client library's own ``process_*`` and ``python_*``.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._states: dict[str, str] = {}
        service = ["service"]
        self._submitted = Counter("aiservices_jobs_submitted", "Jobs accepted.", service, registry=registry)
        self._ended = Counter("aiservices_jobs", "Jobs ended, by status.", [*service, "status"], registry=registry)
        self._retried = Counter("aiservices_jobs_retried", "Retries accepted.", service, registry=registry)
        self._rejected = Counter(
            "aiservices_requests_rejected", "Requests refused, by error code.", [*service, "code"], registry=registry
        )
        self._delay = Histogram(
            "aiservices_job_delay_seconds",
            "Time from submission to the model.",
            service,
            buckets=DELAY_BUCKETS_S,
            registry=registry,
        )
        self._execution = Histogram(
            "aiservices_job_execution_seconds",
            "Time from the model to the end.",
            service,
            buckets=EXECUTION_BUCKETS_S,
            registry=registry,
        )
        self._queue_depth = Gauge("aiservices_queue_depth", "Jobs waiting.", service, registry=registry)
        self._running = Gauge("aiservices_jobs_running", "Jobs on the model.", service, registry=registry)
        self._batch = Histogram(
            "aiservices_batch_size", "Rows per batch.", service, buckets=BATCH_BUCKETS, registry=registry
        )
        self._state = Gauge(
            "aiservices_model_state", "1 for the state the service is in.", [*service, "state"], registry=registry
        )
        self._webhooks = Counter(
            "aiservices_webhooks", "Webhook deliveries, by result.", [*service, "result"], registry=registry
        )
        self._lag = Histogram(
            "aiservices_event_loop_lag_seconds",
            "How late the event loop woke up.",
            buckets=LAG_BUCKETS_S,
            registry=registry,
        )

    def job_submitted(self, service: str) -> None:
        """Count an accepted job."""
        self._submitted.labels(service).inc()

    def job_ended(self, service: str, status: str, delay_s: float, execution_s: float) -> None:
        """Count an ended job and its times; one that never reached the model has no execution time.

        Args:
            service: its name.
            status: the job's final status.
            delay_s: seconds in the queue.
            execution_s: seconds on the model.
        """
        self._ended.labels(service, status).inc()
        self._delay.labels(service).observe(delay_s)
        if execution_s > 0:
            self._execution.labels(service).observe(execution_s)

    def job_retried(self, service: str) -> None:
        """Count a retry."""
        self._retried.labels(service).inc()

    def rejected(self, service: str, code: str) -> None:
        """Count a refused request under the error's code."""
        self._rejected.labels(service, code).inc()

    def queue_depth(self, service: str, count: int) -> None:
        """Note how many jobs wait."""
        self._queue_depth.labels(service).set(count)

    def running(self, service: str, count: int) -> None:
        """Note how many jobs are on the model."""
        self._running.labels(service).set(count)

    def batch(self, service: str, size: int) -> None:
        """Count one batch of that many rows."""
        self._batch.labels(service).observe(size)

    def model_state(self, service: str, state: str) -> None:
        """Note the state that the service went into."""
        previous = self._states.get(service, state)
        self._states[service] = state
        self._state.labels(service, previous).set(0)
        self._state.labels(service, state).set(1)

    def webhook(self, service: str, result: str) -> None:
        """Count one webhook under its result."""
        self._webhooks.labels(service, result).inc()

    def loop_lag(self, seconds: float) -> None:
        """Note how late the event loop woke up."""
        self._lag.observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """Return everything as Prometheus text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


async def watch_loop_lag(metrics: Metrics, interval_s: float = 1.0) -> None:
    """Measure until cancelled how late the event loop wakes up from a sleep of ``interval_s``."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval_s
        await asyncio.sleep(interval_s)
        metrics.loop_lag(max(0.0, loop.time() - due))
