from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Executor, Future
from typing import Any

import attrs

from aiservices.errors import JobFailed
from tests.fakes import TextOutput, Upper, make_shared
from tests.running import ask, ended, output, running


class Finishing(Upper):
    """Its postprocessing raises what the test wants, or says on which thread it ran."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error

    def postprocess(self, result: TextOutput) -> TextOutput:
        if self.error is not None:
            raise self.error
        return TextOutput(threading.current_thread().name.split("-")[0])


class NoPool(Executor):
    """Must not be used."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        raise AssertionError("a thread was used")


async def test_postprocessing_runs_in_the_pool() -> None:
    async with running(Finishing()) as service:
        job = ask(service, "a")
        assert await ended(service, job) == ["COMPLETED"]
        assert output(job)["text"].startswith("ThreadPoolExecutor")


async def test_an_error_in_postprocessing_fails_that_job() -> None:
    for error, text in ((JobFailed("no such words"), "no such words"), (ValueError("a secret"), "internal error")):
        async with running(Finishing(error)) as service:
            job = ask(service, "a")
            assert await ended(service, job) == ["FAILED"]
            assert str(job.error).startswith(text)


async def test_a_foreign_cancellation_in_postprocessing_still_ends_the_job() -> None:
    async with running(Finishing(asyncio.CancelledError())) as service:
        job = ask(service, "a")
        assert await ended(service, job) == ["FAILED"]
        assert job.error == "finishing the output was interrupted"
        assert await ended(service, ask(service, "b")) == ["FAILED"], "the service works on"


async def test_a_handler_that_shapes_nothing_costs_no_thread_but_for_a_large_output() -> None:
    shared = attrs.evolve(make_shared(), pool=NoPool())
    async with running(Upper(), shared=shared) as service:
        job = ask(service, "a")
        assert await ended(service, job) == ["COMPLETED"]


async def test_a_large_output_is_encoded_in_the_pool() -> None:
    class Wordy(Upper):
        def predict(self, tasks: Any) -> list[TextOutput | Exception]:
            return [TextOutput("a" * 100_000) for _ in tasks]

    shared = attrs.evolve(make_shared(), pool=NoPool())
    async with running(Wordy(), shared=shared) as service:
        job = ask(service, "a")
        assert await ended(service, job) == ["FAILED"], "it was encoded on the event loop"
    async with running(Wordy()) as service:
        job = ask(service, "a")
        assert await ended(service, job) == ["COMPLETED"]
        assert len(output(job)["text"]) == 100_000
