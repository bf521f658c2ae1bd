from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiservices.callers import Caller
from aiservices.errors import InvalidInput, Unavailable
from aiservices.jobs import JobRequest, JobStatus
from tests.fakes import Counting, Gated, Upper
from tests.running import LIMIT_S, ask, ended, output, running, until


async def test_a_job_goes_from_input_to_output() -> None:
    async with running(Upper()) as service:
        job = ask(service, "word")
        assert await ended(service, job) == ["COMPLETED"]
        assert service.status(job) == {
            "id": job.id,
            "status": "COMPLETED",
            "delayTime": round(job.delay_s * 1000),
            "executionTime": round(job.execution_s * 1000),
            "workerId": "worker",
        }
        assert output(job) == {"text": "WORD"}


async def test_draining_refuses_new_jobs_and_lets_the_others_end() -> None:
    handler = Gated()
    async with running(handler, max_batch_size=1, batch_wait_s=0) as service:
        jobs = [ask(service, "a"), ask(service, "b")]
        drain = asyncio.create_task(service.drain(LIMIT_S))
        await until(lambda: service.draining)
        with pytest.raises(Unavailable, match="shutting down"):
            ask(service, "c")
        handler.gate.set()
        await drain
        assert [job.status.value for job in jobs] == ["COMPLETED", "COMPLETED"]


async def test_what_does_not_end_within_the_grace_ends_with_a_reason() -> None:
    handler = Gated()
    async with running(handler, max_batch_size=1, batch_wait_s=0) as service:
        jobs = [ask(service, "a"), ask(service, "b")]
        await until(handler.entered.is_set)
        await service.drain(0.01)
        assert [job.error for job in jobs] == ["the server shut down before the job ended"] * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "$.text: this field is required"),
        ({"text": ""}, "$.text: expected at least 1 character"),
        ({"text": 3}, "$.text: expected str, got int"),
        ({"text": "a", "count": 0}, "$.count: expected int >= 1"),
        ({"txt": "a"}, "$.txt: unknown field; did you mean 'text'?"),
    ],
)
async def test_input_that_does_not_fit_is_refused_before_it_is_a_job(given: dict[str, Any], message: str) -> None:
    async with running(Upper()) as service:
        with pytest.raises(InvalidInput) as refusal:
            service.submit(JobRequest(input=given))
        assert str(refusal.value) == message
        assert service.health()["jobs"]["inQueue"] == 0


async def test_null_counts_as_absent_where_there_is_a_default() -> None:
    async with running(Upper()) as service:
        assert await ended(service, ask(service, "a", count=None)) == ["COMPLETED"]


async def test_what_a_key_had_done_counts_when_another_comes() -> None:
    shop, rival = Caller(tenant="shop", key="backend"), Caller(tenant="rival", key="one")
    handler = Counting(free_running=False)
    async with running(handler, max_batch_size=1, prefetch=1) as service:
        jobs = [service.submit(JobRequest(input={"text": "mug", "count": 1}, caller=shop)) for _ in range(10)]
        handler.turn.release(3)
        await ended(service, *jobs[:3])
        await until(lambda: jobs[3].status is JobStatus.IN_PROGRESS)
        late = [service.submit(JobRequest(input={"text": "mug", "count": 1}, caller=rival)) for _ in range(3)]
        assert [service.status(job)["queuePosition"] for job in late] == [2, 4, 6]
