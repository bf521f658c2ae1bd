from __future__ import annotations

import asyncio
import contextlib

from aiservices.metrics import Metrics, watch_loop_lag


def lines(metrics: Metrics) -> set[str]:
    text, _ = metrics.render()
    return set(text.decode().splitlines())


def test_each_event_appears_under_its_documented_name() -> None:
    metrics = Metrics()
    metrics.job_submitted("echo")
    metrics.job_ended("echo", "COMPLETED", 0.03, 1.5)
    metrics.job_retried("echo")
    metrics.rejected("echo", "queue_full")
    metrics.queue_depth("echo", 3)
    metrics.running("echo", 2)
    metrics.batch("echo", 4)
    metrics.webhook("echo", "delivered")
    metrics.loop_lag(0.02)
    assert {
        'aiservices_jobs_submitted_total{service="echo"} 1.0',
        'aiservices_jobs_total{service="echo",status="COMPLETED"} 1.0',
        'aiservices_jobs_retried_total{service="echo"} 1.0',
        'aiservices_requests_rejected_total{code="queue_full",service="echo"} 1.0',
        'aiservices_job_delay_seconds_bucket{le="0.05",service="echo"} 1.0',
        'aiservices_job_execution_seconds_bucket{le="1.0",service="echo"} 0.0',
        'aiservices_job_execution_seconds_bucket{le="2.5",service="echo"} 1.0',
        'aiservices_queue_depth{service="echo"} 3.0',
        'aiservices_jobs_running{service="echo"} 2.0',
        'aiservices_batch_size_sum{service="echo"} 4.0',
        'aiservices_webhooks_total{result="delivered",service="echo"} 1.0',
        "aiservices_event_loop_lag_seconds_count 1.0",
    } <= lines(metrics)


def test_the_documented_names_are_those_that_exist() -> None:
    metrics = Metrics()
    text = metrics.render()[0].decode()
    exported = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE aiservices_")}
    exported = {name for name in exported if not name.endswith("_created")}  # beside each counter and histogram
    documented = {word.strip("`") for word in (Metrics.__doc__ or "").split() if word.startswith("``aiservices_")}
    assert exported == documented


def test_a_job_that_never_ran_has_no_execution_time() -> None:
    metrics = Metrics()
    metrics.job_ended("echo", "CANCELLED", 0.1, 0.0)
    assert not any(line.startswith("aiservices_job_execution_seconds_count") for line in lines(metrics))


def test_a_service_is_in_one_state_at_a_time() -> None:
    metrics = Metrics()
    for state in ("LOADING", "READY", "READY"):
        metrics.model_state("echo", state)
    shown = lines(metrics)
    assert 'aiservices_model_state{service="echo",state="READY"} 1.0' in shown
    assert 'aiservices_model_state{service="echo",state="LOADING"} 0.0' in shown


def test_two_metrics_know_nothing_of_each_other() -> None:
    one, other = Metrics(), Metrics()
    one.job_submitted("echo")
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
