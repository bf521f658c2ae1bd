from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from aiservices.callers import ANYONE
from aiservices.errors import InvalidInput
from aiservices.handler import Context
from aiservices.jobs import EndReason, JobStatus, Stage
from aiservices.pipeline import pipeline
from tests.fakes import Gated, TextInput, Upper
from tests.running import LIMIT_S, ask, ended, running, until


class Fetching(Upper):
    """Its preprocessing is what the test makes of it."""

    def __init__(self, prepare: Callable[[Context], Awaitable[None]]) -> None:
        super().__init__()
        self.prepare = prepare

    async def preprocess(self, input: TextInput, context: Context) -> TextInput:
        await self.prepare(context)
        return input


async def test_an_error_in_preprocessing_fails_that_job_with_its_text() -> None:
    async def refuse(context: Context) -> None:
        raise InvalidInput("$.text", "cannot be read")

    async with running(Fetching(refuse)) as service:
        job = ask(service, "a")
        assert await ended(service, job) == ["FAILED"]
        assert job.error == "$.text: cannot be read"


async def test_cancelling_a_job_stops_its_preprocessing() -> None:
    began, stopped = asyncio.Event(), asyncio.Event()

    async def hang(context: Context) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            assert context.cancelled
            stopped.set()

    async with running(Fetching(hang)) as service:
        job = ask(service, "a")
        await began.wait()
        assert job.status is JobStatus.IN_QUEUE
        service.cancel(job.id, ANYONE)
        async with asyncio.timeout(LIMIT_S):
            await stopped.wait()


async def test_a_foreign_cancellation_in_preprocessing_still_ends_the_job() -> None:
    async def cancelled_by_a_library(context: Context) -> None:
        raise asyncio.CancelledError

    async with running(Fetching(cancelled_by_a_library)) as service:
        job = ask(service, "a")
        assert await ended(service, job) == ["FAILED"]
        assert job.error == "preparing the input was interrupted"


async def test_preprocessing_runs_ahead_of_the_model_but_not_without_bound() -> None:
    prepared = 0

    class Counted(Gated):
        async def preprocess(self, input: TextInput, context: Context) -> TextInput:
            nonlocal prepared
            prepared += 1
            return input

    handler = Counted()
    async with running(handler, max_batch_size=1, batch_wait_s=0, prefetch=3) as service:
        jobs = [ask(service, "a") for _ in range(10)]
        await until(handler.entered.is_set)
        await until(lambda: prepared == 4)
        for _ in range(100):
            await asyncio.sleep(0)
        assert prepared == 4, "one on the model, three ahead"
        handler.gate.set()
        assert await ended(service, *jobs) == ["COMPLETED"] * 10


class Picky(Fetching):
    """Preparing takes for ever where the text is "slow"; the test opens all gates."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        super().__init__(self.wait)

    async def wait(self, context: Context) -> None:
        await self.opened.wait()

    async def preprocess(self, input: TextInput, context: Context) -> TextInput:
        return await super().preprocess(input, context) if input.text == "slow" else input


async def test_jobs_that_take_long_to_prepare_give_their_places_to_others() -> None:
    handler = Picky()
    async with running(handler, prefetch=2, max_batch_size=1) as service:
        slow = [ask(service, "slow") for _ in range(2)]
        quick = ask(service, "quick")
        await until(lambda: all(job.stage is Stage.PREPARING for job in slow))
        assert quick.stage is Stage.QUEUED
        assert await ended(service, quick) == ["COMPLETED"]
        assert [job.stage for job in slow] == [Stage.STALLED] * 2
        assert [service.status(job)["queuePosition"] for job in slow] == [1, 2]
        handler.opened.set()
        assert await ended(service, *slow) == ["COMPLETED"] * 2


async def test_how_many_may_take_long_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "STALLED_AFTER_S", 0.0)
    monkeypatch.setattr(pipeline, "STALLED_PER_PLACE", 1)
    handler = Picky()
    async with running(handler, prefetch=1, max_batch_size=1) as service:
        slow = [ask(service, "slow") for _ in range(3)]
        await until(lambda: [job.stage for job in slow] == [Stage.STALLED, Stage.PREPARING, Stage.QUEUED])
        await asyncio.sleep(0.01)
        assert [job.stage for job in slow] == [Stage.STALLED, Stage.PREPARING, Stage.QUEUED]
        handler.opened.set()
        assert await ended(service, *slow) == ["COMPLETED"] * 3


async def test_preparing_has_a_limit_and_the_job_says_so() -> None:
    handler = Picky()
    async with running(handler, prepare_timeout_s=0.05) as service:
        job = ask(service, "slow")
        assert await ended(service, job) == ["FAILED"]
        assert (job.error, job.reason) == ("preparing the input took longer than 0.05 s", EndReason.PREPARE_TIMEOUT)
        assert service._pipeline.empty


async def test_a_time_out_of_the_handlers_own_is_not_taken_for_ours() -> None:
    async def times_out(context: Context) -> None:
        raise TimeoutError

    async with running(Fetching(times_out)) as service:
        job = ask(service, "a")
        assert await ended(service, job) == ["FAILED"]
        assert job.error == f"internal error (job {job.id})"


async def test_the_interruption_of_an_earlier_attempt_does_not_end_the_retry() -> None:
    handler = Picky()
    async with running(handler) as service:
        job = ask(service, "slow")
        await until(lambda: job.stage is Stage.PREPARING)
        job.finish(Stage.TIMED_OUT, reason=EndReason.TIMEOUT, error="its time was up")
        service.retry(job.id, ANYONE)  # before the work of the first attempt has been stopped
        await until(lambda: job.stage is Stage.PREPARING)
        for _ in range(10):
            await asyncio.sleep(0)
        handler.opened.set()
        assert await ended(service, job) == ["COMPLETED"]
        assert job.attempt == 2
