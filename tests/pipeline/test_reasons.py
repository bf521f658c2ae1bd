"""Why jobs end, in a word: each reason by the way that leads to it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aiservices.callers import ANYONE
from aiservices.errors import FetchError, InvalidInput, JobFailed
from aiservices.handler import Context, Task
from aiservices.jobs import EndReason, Job
from tests.fakes import Gated, TextInput, TextOutput, Unloadable, Upper, make_shared
from tests.running import ask, ended, running, until


class Raising(Upper):
    """Raises what it was made with, before the model, on it, or as one job's result."""

    def __init__(self, error: Exception, where: str) -> None:
        super().__init__()
        self.error, self.where = error, where

    async def preprocess(self, input: TextInput, context: Context) -> TextInput:
        if self.where == "before":
            raise self.error
        return input

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextOutput | Exception]:
        if self.where == "on":
            raise self.error
        return [self.error for _ in tasks] if self.where == "result" else super().predict(tasks)

    def postprocess(self, result: TextOutput) -> TextOutput:
        if self.where == "after":
            raise self.error
        return result


@pytest.mark.parametrize(
    ("error", "where", "reason"),
    [
        (InvalidInput("$.text", "no"), "before", EndReason.INVALID_INPUT),
        (FetchError("$.text", "no"), "before", EndReason.FETCH_FAILED),
        (ValueError("no"), "before", EndReason.INTERNAL_ERROR),
        (ValueError("no"), "on", EndReason.INTERNAL_ERROR),
        (MemoryError("no"), "on", EndReason.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: no"), "on", EndReason.MODEL_BROKEN),
        (JobFailed("no"), "result", EndReason.FAILED),
        (MemoryError("no"), "result", EndReason.OUT_OF_MEMORY),
        (JobFailed("no"), "after", EndReason.FAILED),
        (ValueError("no"), "after", EndReason.INTERNAL_ERROR),
        (ValueError("no"), "never", EndReason.COMPLETED),
    ],
)
async def test_what_a_handler_raises_tells_why(error: Exception, where: str, reason: EndReason) -> None:
    shared = make_shared()
    async with running(Raising(error, where), shared=shared) as service:
        job = ask(service, "a")
        await ended(service, job)
    status = "COMPLETED" if reason is EndReason.COMPLETED else "FAILED"
    assert (job.status, job.reason) == (status, reason)
    counted = f'aiservices_jobs_total{{reason="{reason}",service="fake",status="{status}"}} 1.0'
    assert counted in shared.metrics.render()[0].decode().splitlines()


async def test_limits_and_callers_tell_why() -> None:
    handler = Gated()
    async with running(handler, max_batch_size=1) as service:
        runs = ask(service, "a", timeout_s=0.1)
        await until(handler.entered.is_set)
        waits, cancelled = ask(service, "b", ttl_s=0.01), ask(service, "c")
        service.cancel(cancelled.id, ANYONE)
        await ended(service, runs, waits)
    assert reasons(runs, waits, cancelled) == [EndReason.TIMEOUT, EndReason.TTL, EndReason.CANCELLED]


async def test_a_model_that_cannot_be_loaded_is_told_as_that() -> None:
    async with running(Unloadable()) as service:
        job = ask(service, "a")
        await ended(service, job)
    assert reasons(job) == [EndReason.LOAD_FAILED]


async def test_a_job_that_is_cut_off_by_the_end_of_the_process_is_told_as_that() -> None:
    handler = Gated()
    async with running(handler) as service:
        job = ask(service, "a")
        await until(handler.entered.is_set)
        await service.drain(0.0)
    assert reasons(job) == [EndReason.SHUTDOWN]


def reasons(*jobs: Job) -> list[EndReason | None]:
    return [job.reason for job in jobs]
