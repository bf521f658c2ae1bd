from __future__ import annotations

import asyncio
import contextlib

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aiservices.metrics import DeviceMemory, Metrics, watch_loop_lag

SERIES = {
    ("aiservices_jobs_submitted_total", "counter", ("service",)),
    ("aiservices_jobs_total", "counter", ("reason", "service", "status")),
    ("aiservices_key_jobs_total", "counter", ("key", "service", "status", "tenant")),
    ("aiservices_jobs_retried_total", "counter", ("service",)),
    ("aiservices_requests_total", "counter", ("operation", "status")),
    ("aiservices_request_seconds", "histogram", ("operation",)),
    ("aiservices_requests_rejected_total", "counter", ("code", "service")),
    ("aiservices_request_body_bytes", "gauge", ()),
    ("aiservices_answer_bytes", "gauge", ()),
    ("aiservices_connections", "gauge", ()),
    ("aiservices_fetches_total", "counter", ("result",)),
    ("aiservices_fetch_seconds", "histogram", ()),
    ("aiservices_tokens_total", "counter", ("service",)),
    ("aiservices_audio_seconds_total", "counter", ("service",)),
    ("aiservices_gpu_memory_allocated_bytes", "gauge", ("device",)),
    ("aiservices_gpu_memory_reserved_bytes", "gauge", ("device",)),
    ("aiservices_gpu_memory_total_bytes", "gauge", ("device",)),
    ("aiservices_job_delay_seconds", "histogram", ("service",)),
    ("aiservices_job_execution_seconds", "histogram", ("service",)),
    ("aiservices_queue_depth", "gauge", ("service",)),
    ("aiservices_jobs_running", "gauge", ("service",)),
    ("aiservices_batch_size", "histogram", ("service",)),
    ("aiservices_model_state", "gauge", ("service", "state")),
    ("aiservices_webhooks_total", "counter", ("result", "service")),
    ("aiservices_event_loop_lag_seconds", "histogram", ()),
    ("aiservices_journal_commit_seconds", "histogram", ()),
    ("aiservices_journal_bytes", "gauge", ()),
    ("aiservices_journal_failing", "gauge", ()),
}
"""The wire: dashboards and alerts are built on these names, types and labels."""


def lines(metrics: Metrics) -> set[str]:
    text, _ = metrics.render()
    return set(text.decode().splitlines())


def with_everything() -> Metrics:
    metrics = Metrics()
    echo = metrics.service("echo")
    echo.watch(lambda: 3, lambda: 2)
    echo.submitted()
    echo.ended("COMPLETED", "completed", 0.03, 1.5)
    echo.ended_for("shop", "backend", "COMPLETED")
    echo.retried()
    echo.rows(4)
    echo.state("READY")
    echo.webhook("delivered")
    echo.produced("tokens", 7)
    echo.produced("audio_seconds", 0.5)
    metrics.request("run", 202, 0.003)
    metrics.watch_traffic(lambda: 10, lambda: 20)
    metrics.watch_connections(lambda: 3)
    metrics.watch_devices(lambda: [DeviceMemory("cuda:0", 1, 2, 3)])
    metrics.watch_journal(lambda: True)
    metrics.fetched("timeout", 0.2)
    metrics.rejected("echo", "queue_full")
    metrics.loop_lag(0.02)
    metrics.journal_commit(0.002, 4096)
    return metrics


def test_each_event_appears_under_its_documented_name() -> None:
    assert {
        'aiservices_jobs_submitted_total{service="echo"} 1.0',
        'aiservices_jobs_total{reason="completed",service="echo",status="COMPLETED"} 1.0',
        'aiservices_requests_total{operation="run",status="2xx"} 1.0',
        'aiservices_request_seconds_bucket{le="0.0025",operation="run"} 0.0',
        'aiservices_request_seconds_bucket{le="0.005",operation="run"} 1.0',
        "aiservices_request_body_bytes 10.0",
        "aiservices_answer_bytes 20.0",
        "aiservices_connections 3.0",
        'aiservices_gpu_memory_allocated_bytes{device="cuda:0"} 1.0',
        'aiservices_gpu_memory_reserved_bytes{device="cuda:0"} 2.0',
        'aiservices_gpu_memory_total_bytes{device="cuda:0"} 3.0',
        "aiservices_journal_failing 1.0",
        'aiservices_fetches_total{result="timeout"} 1.0',
        'aiservices_fetch_seconds_bucket{le="0.25"} 1.0',
        'aiservices_tokens_total{service="echo"} 7.0',
        'aiservices_audio_seconds_total{service="echo"} 0.5',
        'aiservices_jobs_retried_total{service="echo"} 1.0',
        'aiservices_requests_rejected_total{code="queue_full",service="echo"} 1.0',
        'aiservices_job_delay_seconds_bucket{le="0.05",service="echo"} 1.0',
        'aiservices_job_execution_seconds_bucket{le="1.0",service="echo"} 0.0',
        'aiservices_job_execution_seconds_bucket{le="2.5",service="echo"} 1.0',
        'aiservices_queue_depth{service="echo"} 3.0',
        'aiservices_jobs_running{service="echo"} 2.0',
        'aiservices_batch_size_sum{service="echo"} 4.0',
        'aiservices_model_state{service="echo",state="READY"} 1.0',
        'aiservices_webhooks_total{result="delivered",service="echo"} 1.0',
        "aiservices_event_loop_lag_seconds_count 1.0",
    } <= lines(with_everything())


def test_names_types_and_labels_are_those_that_dashboards_know() -> None:
    found = set()
    for family in text_string_to_metric_families(with_everything().render()[0].decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if family.name.startswith("aiservices_") and not family.name.endswith("_created"):
            labels = {tuple(sorted(sample.labels.keys() - {"le"})) for sample in family.samples}
            found |= {(name, family.type, each) for each in labels}
    assert found == SERIES


def test_what_is_watched_is_read_when_somebody_asks() -> None:
    metrics, queue = Metrics(), [1, 2]
    metrics.service("echo").watch(lambda: len(queue), lambda: 0)
    assert 'aiservices_queue_depth{service="echo"} 2.0' in lines(metrics)
    queue.append(3)
    assert 'aiservices_queue_depth{service="echo"} 3.0' in lines(metrics)


def test_a_job_that_never_ran_has_no_execution_time() -> None:
    metrics = Metrics()
    metrics.service("echo").ended("CANCELLED", "cancelled", 0.1, None)
    metrics.service("echo").ended("COMPLETED", "completed", 0.1, 0.0)  # within one turn of the loop's clock
    shown = lines(metrics)
    assert 'aiservices_job_delay_seconds_count{service="echo"} 2.0' in shown
    assert 'aiservices_job_execution_seconds_count{service="echo"} 1.0' in shown


def test_statuses_and_results_are_counted_apart() -> None:
    metrics = Metrics()
    echo = metrics.service("echo")
    for status, reason in (("FAILED", "timeout"), ("COMPLETED", "completed"), ("COMPLETED", "completed")):
        echo.ended(status, reason, 0.1, 0.1)
    for result in ("failed", "delivered", "delivered"):
        echo.webhook(result)
    assert {
        'aiservices_jobs_total{reason="timeout",service="echo",status="FAILED"} 1.0',
        'aiservices_jobs_total{reason="completed",service="echo",status="COMPLETED"} 2.0',
        'aiservices_webhooks_total{result="failed",service="echo"} 1.0',
        'aiservices_webhooks_total{result="delivered",service="echo"} 2.0',
    } <= lines(metrics)


def test_what_is_counted_has_one_of_the_units_there_are() -> None:
    with pytest.raises(ValueError, match="tokens, audio_seconds, not 'words'"):
        Metrics().service("echo").produced("words", 1)


def test_a_service_is_in_one_state_at_a_time() -> None:
    metrics = Metrics()
    for state in ("LOADING", "READY", "READY"):
        metrics.service("echo").state(state)
    shown = lines(metrics)
    assert 'aiservices_model_state{service="echo",state="READY"} 1.0' in shown
    assert 'aiservices_model_state{service="echo",state="LOADING"} 0.0' in shown


def test_a_service_counts_from_zero_before_anything_happens() -> None:
    metrics = Metrics()
    metrics.service("echo")
    assert 'aiservices_jobs_submitted_total{service="echo"} 0.0' in lines(metrics)


def test_two_metrics_know_nothing_of_each_other() -> None:
    one, other = Metrics(), Metrics()
    one.service("echo").submitted()
    assert not any(line.startswith("aiservices_jobs_submitted_total{") for line in lines(other))


def test_the_text_says_that_it_is_prometheus_text() -> None:
    assert Metrics().render()[1].startswith("text/plain; version=")


class FirstLag(Metrics):
    def __init__(self) -> None:
        super().__init__()
        self.seen = asyncio.Event()

    def loop_lag(self, seconds: float) -> None:
        super().loop_lag(seconds)
        self.seen.set()


async def test_loop_lag_is_measured_until_cancelled() -> None:
    metrics = FirstLag()
    watcher = asyncio.create_task(watch_loop_lag(metrics, interval_s=0.001))
    await asyncio.wait_for(metrics.seen.wait(), timeout=5)
    assert not watcher.done()
    watcher.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watcher
    assert "aiservices_event_loop_lag_seconds_count 0.0" not in lines(metrics)
