"""What Prometheus may ask of the process. Every series has its name here and nowhere else.

Each :class:`Metrics` has a registry of its own, so that two of them (as in tests) never meet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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

COMMIT_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5)
"""A few rows without a disk's answer take 0.1 ms; a full disk or a slow one, seconds."""

LAG_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
"""Event loop lag: above 0.1 s something blocks the loop."""


class Metrics:
    """The process's series, and the client library's own ``process_*`` and ``python_*`` beside them."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._services: dict[str, ServiceMetrics] = {}
        self._series = _Series(registry)
        self._rejected = Counter(
            "aiservices_requests_rejected", "Requests refused, by error code.", ["service", "code"], registry=registry
        )
        self._commit = Histogram(
            "aiservices_journal_commit_seconds",
            "Time of one commit of the journal.",
            buckets=COMMIT_BUCKETS_S,
            registry=registry,
        )
        self._journal_bytes = Gauge(
            "aiservices_journal_bytes", "The journal's file and its write-ahead log.", registry=registry
        )
        self._lag = Histogram(
            "aiservices_event_loop_lag_seconds",
            "How late the event loop woke up.",
            buckets=LAG_BUCKETS_S,
            registry=registry,
        )

    def service(self, name: str) -> ServiceMetrics:
        """Return what counts for one service: the same for the same name."""
        if name not in self._services:
            self._services[name] = ServiceMetrics(name, self._series)
        return self._services[name]

    def rejected(self, service: str, code: str) -> None:
        """Count a refused request under the error's code; the service is empty where the URL names none of ours."""
        self._rejected.labels(service, code).inc()

    def loop_lag(self, seconds: float) -> None:
        """Note how late the event loop woke up."""
        self._lag.observe(seconds)

    def journal_commit(self, seconds: float, file_bytes: int) -> None:
        """Note a commit of the journal and how large its file is."""
        self._commit.observe(seconds)
        self._journal_bytes.set(file_bytes)

    def render(self) -> tuple[bytes, str]:
        """Return everything as Prometheus text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class ServiceMetrics:
    """One service's counters, gauges and histograms, one method for each thing that can happen.

    The label is looked up once, here: a call costs a lock that nobody else holds. Made by :meth:`Metrics.service`.
    """

    def __init__(self, name: str, series: _Series) -> None:
        self._name = name
        self._series = series
        self._submitted = series.submitted.labels(name)
        self._retried = series.retried.labels(name)
        self._delay = series.delay.labels(name)
        self._execution = series.execution.labels(name)
        self._batch = series.batch.labels(name)
        self._ended: dict[str, Counter] = {}
        self._webhooks: dict[str, Counter] = {}
        self._state: Gauge | None = None

    def watch(self, queued: Callable[[], int], running: Callable[[], int]) -> None:
        """Read the queue's depth and the number of running jobs from here, whenever somebody asks."""
        self._series.queue_depth.labels(self._name).set_function(queued)
        self._series.running.labels(self._name).set_function(running)

    def submitted(self) -> None:
        """Count an accepted job."""
        self._submitted.inc()

    def ended(self, status: str, delay_s: float, execution_s: float | None) -> None:
        """Count an ended job and its times; one that never reached the model has no execution time.

        Args:
            status: the job's final status.
            delay_s: seconds in the queue.
            execution_s: seconds on the model; None if it never got there.
        """
        child = self._ended.get(status)
        if child is None:
            child = self._ended[status] = self._series.ended.labels(self._name, status)
        child.inc()
        self._delay.observe(delay_s)
        if execution_s is not None:
            self._execution.observe(execution_s)

    def retried(self) -> None:
        """Count an accepted retry."""
        self._retried.inc()

    def rows(self, count: int) -> None:
        """Count one batch, or one step of the model, of that many rows. From any thread."""
        self._batch.observe(count)

    def state(self, state: str) -> None:
        """Note the state that the service went into."""
        if self._state is not None:
            self._state.set(0)
        self._state = self._series.state.labels(self._name, state)
        self._state.set(1)

    def webhook(self, result: str) -> None:
        """Count one webhook under its result."""
        child = self._webhooks.get(result)
        if child is None:
            child = self._webhooks[result] = self._series.webhooks.labels(self._name, result)
        child.inc()


class _Series:
    """What every service has, told apart by the label ``service``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        service = ["service"]
        self.submitted = Counter("aiservices_jobs_submitted", "Jobs accepted.", service, registry=registry)
        self.ended = Counter("aiservices_jobs", "Jobs ended, by final status.", [*service, "status"], registry=registry)
        self.retried = Counter("aiservices_jobs_retried", "Retries accepted.", service, registry=registry)
        self.delay = Histogram(
            "aiservices_job_delay_seconds",
            "Time from submission to the model.",
            service,
            buckets=DELAY_BUCKETS_S,
            registry=registry,
        )
        self.execution = Histogram(
            "aiservices_job_execution_seconds",
            "Time from the model to the end.",
            service,
            buckets=EXECUTION_BUCKETS_S,
            registry=registry,
        )
        self.queue_depth = Gauge("aiservices_queue_depth", "Jobs waiting.", service, registry=registry)
        self.running = Gauge("aiservices_jobs_running", "Jobs on the model.", service, registry=registry)
        self.batch = Histogram(
            "aiservices_batch_size",
            "Rows per batch, or per step of the model.",
            service,
            buckets=BATCH_BUCKETS,
            registry=registry,
        )
        self.state = Gauge(
            "aiservices_model_state",
            "1 for the state the service is in, 0 for the others it was in.",
            [*service, "state"],
            registry=registry,
        )
        self.webhooks = Counter(
            "aiservices_webhooks", "Webhook deliveries, by result.", [*service, "result"], registry=registry
        )


async def watch_loop_lag(metrics: Metrics, interval_s: float = 1.0) -> None:
    """Measure until cancelled how late the event loop wakes up from a sleep of ``interval_s``."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + interval_s
        await asyncio.sleep(interval_s)
        metrics.loop_lag(max(0.0, loop.time() - due))
