from __future__ import annotations

from collections.abc import Sequence

import pytest

from aiservices.callers import ANYONE
from aiservices.errors import Conflict, JobFailed, JobNotFound, QueueFull
from aiservices.handler import Task
from aiservices.jobs import Job, JobRequest, fingerprint
from tests.fakes import Counting, Gated, TextInput, TextOutput, Upper
from tests.running import ask, ended, running, until


async def test_purge_ends_the_queued_jobs_only() -> None:
    handler = Gated()
    async with running(handler, max_batch_size=1, batch_wait_s=0) as service:
        first = ask(service, "first")
        await until(handler.entered.is_set)
        waiting = [ask(service, "later") for _ in range(3)]
        assert service.purge(ANYONE) == 3
        handler.gate.set()
        assert await ended(service, first, *waiting) == ["COMPLETED", *["CANCELLED"] * 3]


async def test_low_priority_waits_behind_normal() -> None:
    handler = Gated()
    async with running(handler, max_batch_size=1, batch_wait_s=0, prefetch=1) as service:
        jobs = [ask(service, "first")]
        await until(handler.entered.is_set)
        jobs.append(ask(service, "prepared"))
        jobs += [ask(service, "low", low_priority=True), ask(service, "normal")]
        assert service.status(jobs[2])["queuePosition"] == 3
        handler.gate.set()
        await ended(service, *jobs)
        assert handler.batches == [["first"], ["prepared"], ["normal"], ["low"]]


async def test_the_queue_is_bounded_by_count_and_by_bytes() -> None:
    handler = Gated()
    async with running(handler, queue_size=2, queue_bytes=100, max_batch_size=1, batch_wait_s=0) as service:
        ask(service, "running")
        await until(handler.entered.is_set)
        service.submit(JobRequest(input={"text": "a"}, input_bytes=90))
        with pytest.raises(QueueFull, match="100 bytes"):
            service.submit(JobRequest(input={"text": "b"}, input_bytes=20))
        ask(service, "c")
        with pytest.raises(QueueFull, match="2 jobs") as full:
            ask(service, "d")
        assert full.value.retry_after_s > 0


async def test_a_queued_job_past_its_time_to_live_times_out() -> None:
    handler = Gated()
    async with running(handler, max_batch_size=1, batch_wait_s=0) as service:
        ask(service, "first")
        await until(handler.entered.is_set)
        job = ask(service, "late", ttl_s=0.01)
        assert await ended(service, job) == ["TIMED_OUT"]
        assert job.error == "not started within its time to live of 0.01 s"


async def test_a_failed_job_can_be_retried_and_a_completed_one_cannot() -> None:
    class Flaky(Upper):
        def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextOutput | Exception]:
            results = super().predict(tasks)
            return [JobFailed("try again")] if len(self.batches) == 1 else results

    async with running(Flaky()) as service:
        job = ask(service, "a")
        assert await ended(service, job) == ["FAILED"]
        assert job.error == "try again"
        service.retry(job.id, ANYONE)
        assert await ended(service, job) == ["COMPLETED"]
        assert service.status(job)["retries"] == 1
        with pytest.raises(Conflict, match="COMPLETED"):
            service.retry(job.id, ANYONE)


async def test_a_job_is_begun_again_so_often_and_no_more() -> None:
    class Failing(Upper):
        def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextOutput | Exception]:
            return [JobFailed("no") for _ in tasks]

    async with running(Failing(), max_retries=2) as service:
        job = ask(service, "a")
        for _ in range(2):
            await ended(service, job)
            service.retry(job.id, ANYONE)
        await ended(service, job)
        with pytest.raises(Conflict, match="begun 3 times; the most is 2 after the first"):
            service.retry(job.id, ANYONE)
        assert job.status_object()["retries"] == 2


async def test_one_idempotency_key_brings_one_job() -> None:
    async with running(Upper()) as service:

        def submit(text: str) -> Job:
            digest = fingerprint({"input": {"text": text}})
            return service.submit(JobRequest(input={"text": text}, idempotency_key="key", fingerprint=digest))

        job = submit("a")
        assert submit("a") is job
        await ended(service, job)
        assert submit("a") is job
        with pytest.raises(Conflict, match="another request"):
            submit("b")


async def test_progress_is_shown_while_the_job_runs() -> None:
    handler = Counting(free_running=False)
    async with running(handler) as service:
        job = ask(service, "a", count=4)
        await until(handler.waiting.is_set)
        handler.turn.release(1)
        await until(lambda: job.progress == 0.25)
        assert service.status(job)["output"] == {"progress": 0.25}


async def test_why_a_job_stands_still_is_shown_until_it_goes_on() -> None:
    handler = Counting(free_running=False)
    async with running(handler) as service:
        job = ask(service, "a", count=4)
        await until(handler.waiting.is_set)
        (task,) = handler.rows
        task.context.wait("no room")
        await until(lambda: service.status(job).get("reason") == "no room")
        task.context.wait(None)
        await until(lambda: "reason" not in service.status(job))
        task.context.wait("no room")
        handler.turn.release(4)
        assert await ended(service, job) == ["COMPLETED"]
        assert "reason" not in service.status(job)


async def test_a_stream_that_nobody_reads_stays_within_its_bound() -> None:
    async with running(Counting(), stream_buffer_bytes=200) as service:
        job = ask(service, "a", count=5000)
        assert await ended(service, job) == ["COMPLETED"]
        assert job.stream.size_bytes <= 200
        assert job.stream.dropped > 4000
        assert job.read_stream()[-1] == 5000


async def test_results_are_forgotten_by_count_and_by_time() -> None:
    async with running(Upper(), keep_results=2, keep_results_s=0.05) as service:
        jobs = [ask(service, "a") for _ in range(4)]
        await ended(service, *jobs)
        assert service._jobs._retention.size_bytes <= 2 * jobs[0].size_bytes
        await until(lambda: service._jobs._retention.size_bytes == 0)
        for job in jobs:
            with pytest.raises(JobNotFound, match="not found or expired"):
                service.get(job.id, ANYONE)


async def test_a_job_that_was_retried_is_not_forgotten_while_it_waits() -> None:
    handler = Gated()
    async with running(handler, keep_results=1, max_batch_size=1) as service:
        retried = ask(service, "fail")
        await until(handler.entered.is_set)
        handler.gate.set()
        assert await ended(service, retried) == ["FAILED"]
        handler.gate.clear()
        handler.entered.clear()
        running_one = ask(service, "a")
        await until(handler.entered.is_set)
        service.retry(retried.id, ANYONE)
        for _ in range(3):
            service.cancel(ask(service, "b").id, ANYONE)
        assert service.get(retried.id, ANYONE) is retried
        handler.gate.set()
        assert await ended(service, running_one, retried) == ["COMPLETED", "FAILED"]
