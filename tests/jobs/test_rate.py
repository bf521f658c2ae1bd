from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from aiservices.errors import QueueFull
from aiservices.jobs import EndReason, Job, JobManager, JobRecords, JobRequest, Stage, fingerprint
from aiservices.jobs.rate import WINDOW_JOBS, CompletionRate
from aiservices.quotas import Quotas
from aiservices.settings import ServiceConfig
from tests.fakes import make_shared
from tests.turned_loop import TurnedLoop


@pytest.fixture
def loop() -> Iterator[TurnedLoop]:
    turned = TurnedLoop()
    yield turned
    turned.close()


@pytest.fixture
def jobs() -> JobManager:
    shared = make_shared()
    config = ServiceConfig(name="fake", handler="tests.fakes:Upper", queue_size=20)
    return JobManager(config, shared.metrics.service("fake"), shared.webhooks, "worker", JobRecords(None), Quotas())


class Machine:
    """Submits jobs and works them off, two seconds each, by a clock that it turns itself."""

    def __init__(self, loop: TurnedLoop, jobs: JobManager) -> None:
        self.loop, self.jobs = loop, jobs

    def submit(self, *, model_ready: bool = True, **fields: Any) -> Job:
        async def submit() -> Job:
            return self.jobs.submit(JobRequest(input={}, **fields), {}, model_ready=model_ready)

        return self.loop.run_until_complete(submit())

    def work(self, count: int, seconds: float = 2.0) -> None:
        async def begin() -> Job:
            job = self.jobs.submit(JobRequest(input={}), {})
            self.jobs.start(job)
            return job

        async def end(job: Job) -> None:
            job.finish(Stage.FAILED, reason=EndReason.FAILED, error="done")

        for _ in range(count):
            job = self.loop.run_until_complete(begin())
            self.loop.now += seconds
            self.loop.run_until_complete(end(job))


@pytest.fixture
def machine(loop: TurnedLoop, jobs: JobManager) -> Machine:
    return Machine(loop, jobs)


def worked(rate: CompletionRate, jobs: int, seconds_each: float, began_at: float = 0.0) -> float:
    rate.begin(began_at)
    for number in range(1, jobs + 1):
        rate.end(began_at + number * seconds_each)
    return began_at + jobs * seconds_each


def test_a_rate_is_known_once_enough_was_measured() -> None:
    rate = CompletionRate()
    worked(rate, 9, 0.5)
    assert rate.wait_s(4) is None
    assert rate.retry_after_s(4) == 5
    rate.end(5.0)
    assert rate.wait_s(4) == pytest.approx(2.0, rel=0.05)


def test_idle_time_does_not_count() -> None:
    rate = CompletionRate()
    now = worked(rate, 20, 0.5)
    worked(rate, 20, 0.5, began_at=now + 10_000)
    assert rate.wait_s(10) == pytest.approx(5.0, rel=0.05)


def test_a_whole_batch_counts_by_its_time() -> None:
    rate = CompletionRate()
    rate.begin(0.0)
    for batch in range(1, 6):
        for _ in range(8):
            rate.end(batch * 4.0)
    assert rate.wait_s(8) == pytest.approx(4.0, rel=0.1)


def test_old_times_are_outweighed_by_new_ones() -> None:
    rate = CompletionRate()
    now = worked(rate, 100, 0.1)
    worked(rate, 4 * WINDOW_JOBS, 4.0, began_at=now)
    assert rate.wait_s(10) == pytest.approx(40.0, rel=0.1)


def test_slow_jobs_are_measured_as_well() -> None:
    rate = CompletionRate()
    worked(rate, 10, 600.0)
    assert rate.wait_s(2) == pytest.approx(1200.0, rel=0.05)


@pytest.mark.parametrize(("jobs", "retry_after_s"), [(0, 1.0), (10, 20.0), (10_000, 300.0)])
def test_when_to_try_again_is_bounded(jobs: int, retry_after_s: float) -> None:
    rate = CompletionRate()
    worked(rate, 30, 2.0)
    assert rate.retry_after_s(jobs) == pytest.approx(retry_after_s, rel=0.05)


def test_a_job_that_would_outlive_its_time_in_the_queue_is_refused_at_once(machine: Machine) -> None:
    machine.work(20)
    for _ in range(6):
        machine.submit()
    with pytest.raises(QueueFull, match="about 12 s in the queue would pass the job's time to live of 10 s") as refusal:
        machine.submit(ttl_s=10.0)
    assert refusal.value.retry_after_s == pytest.approx(2.0, rel=0.1)
    assert machine.jobs.waiting_count == 6
    machine.submit(ttl_s=15.0)


def test_what_nobody_measured_refuses_nothing(machine: Machine) -> None:
    machine.work(5)
    for _ in range(6):
        machine.submit(ttl_s=1.0)


def test_a_model_that_is_not_ready_a_warmup_and_a_repeat_are_not_refused(machine: Machine) -> None:
    machine.work(20)
    key: dict[str, Any] = {"idempotency_key": "key", "fingerprint": fingerprint({"input": {}})}
    for _ in range(6):
        machine.submit(low_priority=True)
    known = machine.submit(ttl_s=10.0, model_ready=False, low_priority=True, **key)
    assert machine.submit(ttl_s=10.0, low_priority=True, **key) is known
    assert machine.submit(ttl_s=1.0) is not known  # before those of low priority
    with pytest.raises(QueueFull):
        machine.submit(ttl_s=1.0, low_priority=True)


def test_a_full_queue_tells_when_a_part_of_it_is_worked_off(machine: Machine) -> None:
    machine.work(20)
    for _ in range(20):
        machine.submit()
    with pytest.raises(QueueFull, match="20 jobs") as refusal:
        machine.submit()
    assert refusal.value.retry_after_s == pytest.approx(4.0, rel=0.1)
