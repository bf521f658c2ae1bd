"""Series of one service: its jobs, its model, its webhooks."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

DELAY_BUCKETS_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
"""Time in the queue: from an idle service to a backlog of hours."""

EXECUTION_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
"""Time on the model: up to the default ``timeout_s``."""

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class Series:
    """What every service has, told apart by the label ``service``.

    Args:
        registry: where they are entered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        service = ["service"]
        self.submitted = Counter("aiservices_jobs_submitted", "Jobs accepted.", service, registry=registry)
        self.ended = Counter(
            "aiservices_jobs",
            "Jobs ended, by final status and reason.",
            [*service, "status", "reason"],
            registry=registry,
        )
        self.ended_by_key = Counter(
            "aiservices_key_jobs",
            "Jobs ended, by the key that they came with.",
            [*service, "tenant", "key", "status"],
            registry=registry,
        )
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
        self.produced = {
            "tokens": Counter("aiservices_tokens", "Tokens that models chose.", service, registry=registry),
            "audio_seconds": Counter(
                "aiservices_audio_seconds", "Seconds of sound that models made.", service, registry=registry
            ),
        }
        self.state = Gauge(
            "aiservices_model_state",
            "1 for the state the service is in, 0 for the others it was in.",
            [*service, "state"],
            registry=registry,
        )
        self.webhooks = Counter(
            "aiservices_webhooks", "Webhook deliveries, by result.", [*service, "result"], registry=registry
        )


class ServiceMetrics:
    """One service's counters, gauges and histograms, one method for each thing that can happen.

    The label is looked up once, here: a call costs a lock that nobody else holds. Made by
    :meth:`aiservices.metrics.Metrics.service`.

    Args:
        name: of the service.
        series: of all services.
    """

    def __init__(self, name: str, series: Series) -> None:
        self._name = name
        self._series = series
        self._submitted = series.submitted.labels(name)
        self._retried = series.retried.labels(name)
        self._delay = series.delay.labels(name)
        self._execution = series.execution.labels(name)
        self._batch = series.batch.labels(name)
        self._produced = {unit: counter.labels(name) for unit, counter in series.produced.items()}
        self._ended: dict[tuple[str, str], Counter] = {}
        self._webhooks: dict[str, Counter] = {}
        self._state: Gauge | None = None

    def watch(self, queued: Callable[[], int], running: Callable[[], int]) -> None:
        """Read the queue's depth and the number of running jobs from here, whenever somebody asks."""
        self._series.queue_depth.labels(self._name).set_function(queued)
        self._series.running.labels(self._name).set_function(running)

    def submitted(self) -> None:
        """Count an accepted job."""
        self._submitted.inc()

    def ended(self, status: str, reason: str, delay_s: float, execution_s: float | None) -> None:
        """Count an ended job and its times; one that never reached the model has no execution time.

        Args:
            status: the job's final status.
            reason: why it ended: one of a small number of words.
            delay_s: seconds in the queue.
            execution_s: seconds on the model; None if it never got there.
        """
        child = self._ended.get((status, reason))
        if child is None:
            child = self._ended[status, reason] = self._series.ended.labels(self._name, status, reason)
        child.inc()
        self._delay.observe(delay_s)
        if execution_s is not None:
            self._execution.observe(execution_s)

    def ended_for(self, tenant: str, key: str, status: str) -> None:
        """Count an ended job for the key that it came with; there are as many as the file of keys names."""
        self._series.ended_by_key.labels(self._name, tenant, key, status).inc()

    def retried(self) -> None:
        """Count an accepted retry."""
        self._retried.inc()

    def rows(self, count: int) -> None:
        """Count one batch, or one step of the model, of that many rows. From any thread."""
        self._batch.observe(count)

    def produced(self, unit: str, amount: float) -> None:
        """Count what a model made, ``tokens`` or ``audio_seconds``. From any thread.

        Raises:
            ValueError: it is counted in another unit, or the amount is negative.
        """
        if unit not in self._produced:
            raise ValueError(f"what a handler counts is one of {', '.join(self._produced)}, not {unit!r}")
        self._produced[unit].inc(amount)

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
