"""Series of the process as a whole, and all there are as Prometheus text.

Each :class:`Metrics` has a registry of its own, so that two of them (as in tests) never meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import attrs
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
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aiservices.metrics.service import Series, ServiceMetrics

COMMIT_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5)
"""A few rows without a disk's answer take 0.1 ms; a full disk or a slow one, seconds."""

LAG_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
"""Event loop lag: above 0.1 s something blocks the loop."""

REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 30, 100, 300)
"""From ``run`` to ``status-sync``, which waits for a job's end: 90 s by default, 300 s at most."""

FETCH_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)
"""Up to the default ``timeout_s`` of a download."""


@attrs.frozen
class DeviceMemory:
    """Memory of one GPU in bytes, as this process's allocator sees it.

    Attributes:
        device: as ``cuda:0``.
        allocated: what tensors hold.
        reserved: that and what is kept for the next ones.
        total: what the device has.
    """

    device: str
    allocated: int
    reserved: int
    total: int


def _no_devices() -> Iterable[DeviceMemory]:
    return ()


class Metrics:
    """The process's series, and the client library's own ``process_*`` and ``python_*`` beside them."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._services: dict[str, ServiceMetrics] = {}
        self._series = Series(registry)
        self._http = _HttpSeries(registry)
        self._requests: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._devices = _Devices()
        registry.register(self._devices)
        self._fetches = Counter(
            "aiservices_fetches", "Downloads of callers' URLs, by result.", ["result"], registry=registry
        )
        self._fetch_seconds = Histogram(
            "aiservices_fetch_seconds",
            "Time of a download, failed ones included.",
            buckets=FETCH_BUCKETS_S,
            registry=registry,
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
        self._journal_failing = Gauge(
            "aiservices_journal_failing", "1 while the journal cannot be written.", registry=registry
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
        self._http.rejected.labels(service, code).inc()

    def request(self, operation: str, status: int, seconds: float) -> None:
        """Count an answered request, and the time that the answer took.

        Args:
            operation: one of those there are, whatever the URL says.
            status: of the answer; counted by its first digit.
            seconds: from the request's head to the answer's end.
        """
        label = f"{status // 100}xx"
        known = self._requests.get((operation, label))
        if known is None:
            known = self._http.requests.labels(operation, label), self._http.seconds.labels(operation)
            self._requests[operation, label] = known
        known[0].inc()
        known[1].observe(seconds)

    def watch_traffic(self, body_bytes: Callable[[], int], answer_bytes: Callable[[], int]) -> None:
        """Read from here, whenever somebody asks, what bodies and large answers under way hold."""
        self._http.body_bytes.set_function(body_bytes)
        self._http.answer_bytes.set_function(answer_bytes)

    def watch_connections(self, count: Callable[[], int]) -> None:
        """Read the number of open connections from here, whenever somebody asks."""
        self._http.connections.set_function(count)

    def watch_devices(self, read: Callable[[], Iterable[DeviceMemory]]) -> None:
        """Read the memory of GPUs from here, whenever somebody asks."""
        self._devices.read = read

    def fetched(self, result: str, seconds: float) -> None:
        """Count a download under its result: ``ok``, or a word for what failed."""
        self._fetches.labels(result).inc()
        self._fetch_seconds.observe(seconds)

    def loop_lag(self, seconds: float) -> None:
        """Note how late the event loop woke up."""
        self._lag.observe(seconds)

    def journal_commit(self, seconds: float, file_bytes: int) -> None:
        """Note a commit of the journal and how large its file is."""
        self._commit.observe(seconds)
        self._journal_bytes.set(file_bytes)

    def watch_journal(self, failing: Callable[[], bool]) -> None:
        """Read from here, whenever somebody asks, whether the journal cannot be written."""
        self._journal_failing.set_function(failing)

    def render(self) -> tuple[bytes, str]:
        """Return everything as Prometheus text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _HttpSeries:
    """Requests and what they hold."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rejected = Counter(
            "aiservices_requests_rejected", "Requests refused, by error code.", ["service", "code"], registry=registry
        )
        self.requests = Counter(
            "aiservices_requests",
            "Requests answered, by operation and class of the status.",
            ["operation", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "aiservices_request_seconds",
            "Time from a request's head to the end of its answer.",
            ["operation"],
            buckets=REQUEST_BUCKETS_S,
            registry=registry,
        )
        self.body_bytes = Gauge(
            "aiservices_request_body_bytes", "Bytes of request bodies being read or decoded.", registry=registry
        )
        self.answer_bytes = Gauge("aiservices_answer_bytes", "Bytes of large answers being sent.", registry=registry)
        self.connections = Gauge("aiservices_connections", "Open connections.", registry=registry)


class _Devices(Collector):
    """Memory of GPUs, read when somebody asks; nothing where there is none."""

    def __init__(self) -> None:
        self.read: Callable[[], Iterable[DeviceMemory]] = _no_devices

    def collect(self) -> Iterator[Metric]:
        """Give one gauge for each kind of number."""
        memory = list(self.read())
        for kind, meaning in (
            ("allocated", "Bytes of a GPU that tensors hold."),
            ("reserved", "Bytes of a GPU that this process's allocator holds."),
            ("total", "Bytes that a GPU has."),
        ):
            gauge = GaugeMetricFamily(f"aiservices_gpu_memory_{kind}_bytes", meaning, labels=["device"])
            for each in memory:
                gauge.add_metric([each.device], getattr(each, kind))
            yield gauge
