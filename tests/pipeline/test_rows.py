from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from structlog.testing import capture_logs

from aiservices.callers import ANYONE
from aiservices.errors import Unavailable
from aiservices.handler import Context, Handler, Task
from aiservices.jobs import JobStatus, Stage
from aiservices.model import ServiceState
from tests.fakes import Counting, Gated, TextInput, TextOutput, Upper, make_shared
from tests.running import LIMIT_S, ask, ended, output, running, until


async def test_a_failing_item_fails_alone() -> None:
    async with running(Upper(), batch_wait_s=0.02) as service:
        jobs = [ask(service, text) for text in ("a", "fail", "b")]
        assert await ended(service, *jobs) == ["COMPLETED", "FAILED", "COMPLETED"]
        assert jobs[1].error == f"internal error (job {jobs[1].id})"
        assert isinstance(service.handler, Upper)
        assert service.handler.batches == [["a", "fail", "b"]]


async def test_a_failing_batch_fails_its_jobs_and_the_next_one_runs() -> None:
    async with running(Upper(), batch_wait_s=0.02) as service:
        jobs = [ask(service, text) for text in ("a", "explode")]
        assert await ended(service, *jobs) == ["FAILED", "FAILED"]
        assert await ended(service, ask(service, "b")) == ["COMPLETED"]


async def test_a_cancelled_caller_leaves_its_batch_companions_alone() -> None:
    handler = Gated()
    async with running(handler, batch_wait_s=0.02) as service:
        jobs = [ask(service, text) for text in ("a", "b", "c")]
        await until(handler.entered.is_set)
        service.cancel(jobs[1].id, ANYONE)
        assert jobs[1].status is JobStatus.CANCELLED
        handler.gate.set()
        assert await ended(service, *jobs) == ["COMPLETED", "CANCELLED", "COMPLETED"]
        assert jobs[1].output is None


async def test_a_cancelled_queued_job_never_reaches_the_model() -> None:
    handler = Gated()
    async with running(handler, max_batch_size=1, batch_wait_s=0) as service:
        first = ask(service, "first")
        await until(handler.entered.is_set)
        second, third = ask(service, "second"), ask(service, "third")
        service.cancel(second.id, ANYONE)
        handler.gate.set()
        assert await ended(service, first, second, third) == ["COMPLETED", "CANCELLED", "COMPLETED"]
        assert handler.batches == [["first"], ["third"]]


async def test_a_running_batch_job_times_out_at_once_and_its_late_result_is_dropped() -> None:
    handler = Gated()
    async with running(handler, batch_wait_s=0.02) as service:
        hasty, patient = ask(service, "hasty", timeout_s=0.02), ask(service, "patient")
        assert await ended(service, hasty) == ["TIMED_OUT"]
        assert hasty.error == "execution timed out after 0.02 s"
        handler.gate.set()
        assert await ended(service, patient) == ["COMPLETED"]
        assert hasty.status is JobStatus.TIMED_OUT
        retried = service.retry(hasty.id, ANYONE)
        assert retried is hasty
        assert service.status(retried)["retries"] == 1


async def test_rows_join_a_running_batch_and_leave_it_when_done() -> None:
    handler = Counting(free_running=False)
    async with running(handler, max_batch_size=4) as service:
        long = ask(service, "long", count=6)
        await until(handler.waiting.is_set)
        short = ask(service, "short", count=2)
        await until(lambda: short.status is JobStatus.IN_PROGRESS)
        handler.turn.release(100)
        assert await ended(service, short, long) == ["COMPLETED", "COMPLETED"]
        assert handler.widest == 2
        assert handler.steps <= 7
        assert output(short) == {"text": "short 2"}
        assert long.read_stream() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("way", ["cancel", "timeout", "fail"])
async def test_a_row_that_ends_early_is_out_within_two_steps_and_its_companions_go_on(way: str) -> None:
    handler = Counting(free_running=False)
    async with running(handler, max_batch_size=4) as service:
        companions = [ask(service, "a", count=8), ask(service, "b", count=9)]
        victim = ask(service, "bad-row" if way == "fail" else "victim", count=100, timeout_s=0.05)
        await until(lambda: len(handler.rows) == 3)
        if way == "cancel":
            service.cancel(victim.id, ANYONE)
        if way == "timeout":
            await victim.wait_end(LIMIT_S)
        if way != "fail":
            assert victim.ended, "ended at once, whatever the model does"
        for _ in range(2):
            await until(handler.waiting.is_set)
            handler.waiting.clear()
            handler.turn.release()
        await until(handler.waiting.is_set)
        assert len(handler.rows) == 2
        handler.turn.release(100)
        assert await ended(service, *companions) == ["COMPLETED", "COMPLETED"]
        assert [output(job)["text"] for job in companions] == ["a 8", "b 9"]
        assert victim.status is {"cancel": JobStatus.CANCELLED, "timeout": JobStatus.TIMED_OUT}.get(
            way, JobStatus.FAILED
        )


async def test_a_failing_step_fails_every_row_and_the_next_job_runs() -> None:
    handler = Counting()
    async with running(handler) as service:
        jobs = [ask(service, "a", count=1000), ask(service, "bad-step", count=5)]
        assert await ended(service, *jobs) == ["FAILED", "FAILED"]
        assert handler.resets == 1
        assert await ended(service, ask(service, "b")) == ["COMPLETED"]


async def test_a_row_that_cannot_join_leaves_the_running_ones_alone() -> None:
    handler = Counting(free_running=False)
    async with running(handler) as service:
        going = ask(service, "a", count=5)
        await until(handler.waiting.is_set)
        stranger = ask(service, "bad-join")
        await until(lambda: stranger.status is JobStatus.IN_PROGRESS)
        handler.turn.release(100)
        assert await ended(service, going, stranger) == ["COMPLETED", "FAILED"]


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


async def test_out_of_memory_fails_its_batch_and_halves_the_next_ones() -> None:
    class Hungry(Upper):
        def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextOutput | Exception]:
            results = super().predict(tasks)
            if len(tasks) > 2:
                raise OutOfMemoryError("CUDA out of memory")
            return results

    handler = Hungry()
    async with running(handler, max_batch_size=4, batch_wait_s=0.05) as service:
        jobs = [ask(service, "a") for _ in range(4)]
        assert await ended(service, *jobs) == ["FAILED"] * 4
        assert "out of memory" in (jobs[0].error or "")
        jobs = [ask(service, "b") for _ in range(4)]
        assert await ended(service, *jobs) == ["COMPLETED"] * 4
        assert [len(batch) for batch in handler.batches] == [4, 2, 2]


@pytest.mark.parametrize("kind", [Upper, Counting])
async def test_a_broken_device_fails_the_service_for_good(kind: type[Handler[Any, Any]]) -> None:
    def lost(*_: object) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    told = asyncio.Event()
    handler = kind()
    setattr(handler, "predict" if kind is Upper else "step", lost)
    shared = attrs.evolve(make_shared(), on_broken=told.set)
    async with running(handler, shared=shared, max_batch_size=1) as service:
        jobs = [ask(service, "a"), ask(service, "b")]
        assert await ended(service, *jobs) == ["FAILED", "FAILED"]
        assert jobs[1].error is not None
        assert "cannot be used again in this process: CUDA error: an illegal" in jobs[1].error
        assert service.broken
        assert told.is_set()
        with pytest.raises(Unavailable) as refusal:
            ask(service, "c")
        assert refusal.value.retry_after_s is None


async def test_an_idle_model_starts_at_once_and_companions_gather_while_it_works() -> None:
    handler = Gated()
    async with running(handler, max_batch_size=8) as service:
        first = ask(service, "first")
        await until(handler.entered.is_set)
        companions = [ask(service, f"companion {number}") for number in range(5)]
        await asyncio.sleep(0)
        handler.gate.set()
        await ended(service, first, *companions)
        assert handler.batches == [["first"], [f"companion {number}" for number in range(5)]]


async def test_a_wait_for_companions_that_is_set_lets_an_idle_model_wait() -> None:
    handler = Upper()
    async with running(handler, max_batch_size=3, batch_wait_s=LIMIT_S) as service:
        await until(lambda: service.state is ServiceState.READY)
        first = ask(service, "a")
        for _ in range(20):
            await asyncio.sleep(0)
        assert first.stage is Stage.READY
        assert await ended(service, first, ask(service, "b"), ask(service, "c")) == ["COMPLETED"] * 3
        assert handler.batches == [["a", "b", "c"]]


@pytest.mark.parametrize(("kind", "counted"), [(Upper, {1: 1}), (Counting, {1: 5})])
async def test_every_step_of_the_model_is_counted_not_only_those_that_finish_a_row(
    kind: type[Upper | Counting], counted: dict[int, int]
) -> None:
    shared = make_shared()
    async with running(kind(), shared=shared) as service:
        await ended(service, ask(service, "a", count=5))
        text = shared.metrics.render()[0].decode()
        for rows, times in counted.items():
            assert f'aiservices_batch_size_bucket{{le="{rows}.0",service="fake"}} {times}.0' in text


async def test_a_model_that_never_answers_fails_the_service_with_the_stack_of_its_thread() -> None:
    handler, told = Gated(), list[str]()
    shared = attrs.evolve(make_shared(), on_broken=lambda: told.append("broken"))
    async with running(handler, shared=shared, timeout_s=0.05, hang_s=0.05) as service:
        with capture_logs() as logs:
            job = ask(service, "a")
            await until(handler.entered.is_set)
            waiting = ask(service, "b")
            assert await ended(service, job, waiting) == ["TIMED_OUT", "FAILED"]
        assert waiting.error == "the model hangs: it did not let go of a job within 0.05 s after its end (hang_s)"
        assert (service.state, service.reason, service.broken, told) == ("FAILED", waiting.error, True, ["broken"])
        stack = next(entry["stack"] for entry in logs if entry["event"] == "model.hangs")
        assert "the test never opened the gate" in stack
        with pytest.raises(Unavailable, match="hangs"):
            ask(service, "c")


async def test_a_short_limit_of_a_caller_does_not_make_a_slow_model_a_hanging_one() -> None:
    handler = Gated()
    async with running(handler, timeout_s=LIMIT_S, hang_s=0.01) as service:
        job = ask(service, "a", timeout_s=0.01)
        assert await ended(service, job) == ["TIMED_OUT"]
        await asyncio.wait([asyncio.get_running_loop().create_task(asyncio.to_thread(handler.gate.wait, 0.1))])
        assert service.state is ServiceState.READY
        handler.gate.set()
        assert await ended(service, ask(service, "b")) == ["COMPLETED"]


async def test_results_of_a_retried_jobs_first_attempt_are_dropped() -> None:
    handler = Gated()
    async with running(handler, timeout_s=LIMIT_S) as service:
        job = ask(service, "a", timeout_s=0.05)
        await until(handler.entered.is_set)
        assert await ended(service, job) == ["TIMED_OUT"]
        service.retry(job.id, ANYONE)
        assert job.stage is Stage.QUEUED
        handler.gate.set()
        assert await ended(service, job) == ["COMPLETED"]
        assert (job.attempt, handler.batches) == (2, [["a"], ["a"]])


@pytest.mark.parametrize("place", ["preprocess", "predict", "postprocess"])
async def test_an_exit_in_a_library_fails_its_jobs_and_no_more(place: str) -> None:
    class Exits(Upper):
        async def preprocess(self, input: TextInput, context: Context) -> TextInput:
            if (place, input.text) == ("preprocess", "bad"):
                raise SystemExit(3)
            return input

        def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextOutput | Exception]:
            if place == "predict" and any(task.item.text == "bad" for task in tasks):
                raise SystemExit(3)
            return super().predict(tasks)

        def postprocess(self, result: TextOutput) -> TextOutput:
            if (place, result.text) == ("postprocess", "BAD"):
                raise SystemExit(3)
            return result

    async with running(Exits()) as service:
        bad = ask(service, "bad")
        assert await ended(service, bad) == ["FAILED"]
        assert bad.error == f"internal error (job {bad.id})"
        assert await ended(service, ask(service, "good")) == ["COMPLETED"]


async def test_a_companion_with_more_time_keeps_a_batch_from_counting_as_hung() -> None:
    handler = Gated()
    async with running(handler, timeout_s=0.02, hang_s=0.02, batch_wait_s=LIMIT_S, max_batch_size=2) as service:
        short, long = ask(service, "a"), ask(service, "b", timeout_s=LIMIT_S)
        assert await ended(service, short) == ["TIMED_OUT"]
        await asyncio.sleep(0.1)
        assert not service.broken
        handler.gate.set()
        assert await ended(service, long) == ["COMPLETED"]


async def test_jobs_that_were_cancelled_on_the_model_hold_no_memory() -> None:
    handler = Counting()
    async with running(handler, max_batch_size=4) as service:
        jobs = [ask(service, "a", count=1_000_000, timeout_s=LIMIT_S) for _ in range(4)]
        await until(lambda: all(job.stage is Stage.RUNNING for job in jobs))
        tasks = [weakref.ref(task) for task in service._pipeline._on_model._rows]
        for job in jobs:
            service.cancel(job.id, ANYONE)
        await until(lambda: service._pipeline.empty and not handler.rows)
        await asyncio.sleep(0)
        assert [task() for task in tasks] == [None] * 4


async def test_closing_takes_rows_out_and_unloads() -> None:
    class Unloads(Counting):
        unloaded = False

        def unload(self) -> None:
            self.unloaded = True

    handler = Unloads()
    async with running(handler) as service:
        job = ask(service, "a", count=1_000_000)
        await until(lambda: job.stage is Stage.RUNNING and bool(handler.rows))
    assert handler.unloaded
    assert not handler.rows


async def test_steps_that_are_told_one_by_one_are_told_all_the_same() -> None:
    class Yields(Counting):
        def step(self) -> Any:
            yield from super().step()

    async with running(Yields()) as service:
        assert await ended(service, ask(service, "a")) == ["COMPLETED"]


async def test_a_job_that_is_cancelled_before_its_row_joined_gives_its_place_back() -> None:
    handler = Counting(free_running=False)
    async with running(handler, max_batch_size=2) as service:
        first = ask(service, "a", count=2)
        await until(handler.waiting.is_set)
        second = ask(service, "b")
        await until(lambda: second.stage is Stage.RUNNING)  # handed over, while the first one's step is under way
        service.cancel(second.id, ANYONE)
        handler.turn.release(100)
        assert await ended(service, first) == ["COMPLETED"]
        await until(lambda: service._pipeline.empty)
        assert not handler.rows
