from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import msgspec
import pytest

import aiservices
from aiservices.errors import Conflict, InvalidInput, JobFailed, JobNotFound, QueueFull, Unavailable
from aiservices.handler import Context, Handler, Task
from aiservices.jobs import Job, JobRequest, JobStatus, fingerprint
from aiservices.model import ServiceState, check_memory
from aiservices.service import Service
from aiservices.storage import ModelStore, OnProgress, Progress
from tests.fakes import Counting, Gated, Shelved, TextInput, TextOutput, Unloadable, Upper, make_service, make_shared

LIMIT_S = 10.0


@asynccontextmanager
async def running(handler: Handler[Any, Any], **settings: Any) -> AsyncIterator[Service]:
    service = make_service(handler, **settings)
    await service.start()
    try:
        yield service
    finally:
        for gate in ("gate", "turn"):
            _open(getattr(handler, gate, None))
        await service.close()


def _open(gate: threading.Event | threading.Semaphore | None) -> None:
    if isinstance(gate, threading.Event):
        gate.set()
    elif gate is not None:
        gate.release(100_000)


def ask(service: Service, text: str, **fields: Any) -> Job:
    settings = {name: fields.pop(name) for name in ("low_priority", "timeout_s", "ttl_s", "webhook") if name in fields}
    return service.submit(JobRequest(input={"text": text, **fields}, **settings))


async def ended(service: Service, *jobs: Job) -> list[str]:
    for job in jobs:
        await service.wait(job, LIMIT_S)
    return [job.status.value for job in jobs]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110  (what is awaited happens on another thread)
            await asyncio.sleep(0)


def output(job: Job) -> Any:
    assert job.output is not None, job.error
    return job.output.as_dict()


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


async def test_jobs_sent_while_the_model_loads_wait_and_say_so() -> None:
    release = threading.Event()

    class Slow(Upper):
        def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
            assert release.wait(LIMIT_S)

    async with running(Slow()) as service:
        first, second = ask(service, "a"), ask(service, "b")
        await until(lambda: service.reason == "the model is being loaded")
        assert service.status(second) == {
            "id": second.id,
            "status": "IN_QUEUE",
            "queuePosition": 2,
            "reason": "the model is being loaded",
        }
        release.set()
        assert await ended(service, first, second) == ["COMPLETED", "COMPLETED"]


async def test_a_service_that_loads_on_first_use_stays_cold_until_then() -> None:
    async with running(Upper(), load="first_use") as service:
        await asyncio.sleep(0)
        assert service.state is ServiceState.COLD
        assert await ended(service, ask(service, "a")) == ["COMPLETED"]
        assert service.health()["workers"]["ready"] == 1


async def test_load_work_and_unload_run_on_one_thread() -> None:
    threads: list[int] = []

    class Watched(Upper):
        def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
            threads.append(threading.get_ident())

        def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextOutput | Exception]:
            threads.append(threading.get_ident())
            return super().predict(tasks)

        def unload(self) -> None:
            threads.append(threading.get_ident())

    async with running(Watched()) as service:
        await ended(service, ask(service, "a"))
    assert len(threads) == 3
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_a_model_that_cannot_be_loaded_ends_the_queue_with_the_reason() -> None:
    async with running(Unloadable()) as service:
        job = ask(service, "a")
        assert await ended(service, job) == ["FAILED"]
        assert job.error == "the model could not be loaded: options: no such weights"
        assert service.state is ServiceState.FAILED
        with pytest.raises(Unavailable, match="no such weights"):
            ask(service, "b")


async def test_a_warm_up_loads_the_model_and_tries_again_after_a_failure() -> None:
    class SecondTime(Upper):
        tries = 0

        def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
            self.tries += 1
            if self.tries == 1:
                raise JobFailed("not yet")

    async with running(SecondTime()) as service:
        await until(lambda: service.state is ServiceState.FAILED)
        warmup = service.submit(JobRequest(input={"action": "warmup"}))
        assert await ended(service, warmup) == ["COMPLETED"]
        assert output(warmup) == {"state": "READY"}
        assert await ended(service, ask(service, "a")) == ["COMPLETED"]
        again = service.submit(JobRequest(input={"action": "warmup"}))
        assert await ended(service, again) == ["COMPLETED"]


async def test_an_option_that_names_a_folder_is_brought_here_before_the_model_is_loaded(tmp_path: Path) -> None:
    gate, asked = asyncio.Event(), list[tuple[str, str]]()

    class Store:
        """Stands in for the model store: tells half of a download and waits for the test."""

        async def resolve(self, uri: str, on_progress: OnProgress | None = None, *, option: str = "") -> Path | None:
            asked.append((uri, option))
            if not uri:
                return None
            assert on_progress is not None
            on_progress(Progress(0, 1, 1024, 2048))
            await gate.wait()
            return tmp_path

    shared = attrs.evolve(make_shared(), store=cast(ModelStore, Store()))
    given = {"shelf": "s3://models/shelf/", "other": 5}
    async with running(Shelved(), shared=shared, options=given) as service:
        job = ask(service, "a")
        await until(lambda: len(asked) == 2)
        assert service.status(job)["reason"] == "options.shelf is being fetched: 1.0 KiB of 2.0 KiB"
        gate.set()
        assert await ended(service, job) == ["COMPLETED"]
        assert asked == [("", ""), ("s3://models/shelf/", "shelf")]
        assert isinstance(service.handler, Shelved)
        assert service.handler.options == {"shelf": str(tmp_path), "other": 5}
        assert service.config.options == given


@pytest.mark.parametrize(
    ("given", "shelf"),
    [
        ({"shelf": "tests/handlers"}, "tests/handlers"),
        ({"shelf": "package://aiservices/demo"}, str(Path(aiservices.__file__).parent / "demo")),
        ({"shelf": ""}, ""),
        ({"shelf": None}, None),
        ({"shelf": 7}, 7),
        ({}, None),
    ],
    ids=["relative", "package", "empty", "none", "a number", "absent"],
)
async def test_what_is_a_folder_here_or_no_folder_is_left_as_it_is(given: dict[str, Any], shelf: object) -> None:
    async with running(Shelved(), options=given) as service:
        assert await ended(service, ask(service, "a")) == ["COMPLETED"]
        assert isinstance(service.handler, Shelved)
        assert service.handler.options.get("shelf") == shelf


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("nowhere/at/all", "options.shelf: 'nowhere/at/all': no such folder (/"),
        ("package://aiservices/nowhere", "options.shelf: 'package://aiservices/nowhere': no such folder (/"),
        ("hff://a/b", "options.shelf: 'hff://a/b': unknown scheme 'hff://'; did you mean 'hf://'?"),
    ],
)
async def test_an_option_whose_folder_cannot_be_had_fails_the_service_by_its_name(uri: str, reason: str) -> None:
    async with running(Shelved(), options={"shelf": uri}) as service:
        job = ask(service, "a")
        assert await ended(service, job) == ["FAILED"]
        assert (job.error or "").startswith(f"the model could not be loaded: {reason}")
        assert service.state is ServiceState.FAILED


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
        service.cancel(jobs[1].id)
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
        service.cancel(second.id)
        handler.gate.set()
        assert await ended(service, first, second, third) == ["COMPLETED", "CANCELLED", "COMPLETED"]
        assert handler.batches == [["first"], ["third"]]


async def test_purge_ends_the_queued_jobs_only() -> None:
    handler = Gated()
    async with running(handler, max_batch_size=1, batch_wait_s=0) as service:
        first = ask(service, "first")
        await until(handler.entered.is_set)
        waiting = [ask(service, "later") for _ in range(3)]
        assert service.purge() == 3
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


async def test_a_running_batch_job_times_out_at_once_and_its_late_result_is_dropped() -> None:
    handler = Gated()
    async with running(handler, batch_wait_s=0.02) as service:
        hasty, patient = ask(service, "hasty", timeout_s=0.02), ask(service, "patient")
        assert await ended(service, hasty) == ["TIMED_OUT"]
        assert hasty.error == "execution timed out after 0.02 s"
        handler.gate.set()
        assert await ended(service, patient) == ["COMPLETED"]
        assert hasty.status is JobStatus.TIMED_OUT
        retried = service.retry(hasty.id)
        assert retried is hasty
        assert service.status(retried)["retries"] == 1


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
        service.retry(job.id)
        assert await ended(service, job) == ["COMPLETED"]
        assert service.status(job)["retries"] == 1
        with pytest.raises(Conflict, match="COMPLETED"):
            service.retry(job.id)


async def test_one_idempotency_key_brings_one_job() -> None:
    async with running(Upper()) as service:

        def submit(text: str) -> Job:
            digest = fingerprint({"input": {"text": text}})
            return service.submit(JobRequest(input={"text": text}, idempotency_key="key", fingerprint=digest))

        job = submit("a")
        assert submit("a") is job
        await ended(service, job)
        assert submit("a") is job
        with pytest.raises(Conflict, match="another input"):
            submit("b")


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
            service.cancel(victim.id)
        if way == "timeout":
            await service.wait(victim, LIMIT_S)
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
        service.cancel(job.id)
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


async def test_progress_is_shown_while_the_job_runs() -> None:
    handler = Counting(free_running=False)
    async with running(handler) as service:
        job = ask(service, "a", count=4)
        await until(handler.waiting.is_set)
        handler.turn.release(1)
        await until(lambda: job.progress == 0.25)
        assert service.status(job)["output"] == {"progress": 0.25}


async def test_a_stream_that_nobody_reads_stays_within_its_bound() -> None:
    async with running(Counting(), stream_buffer_bytes=200) as service:
        job = ask(service, "a", count=5000)
        assert await ended(service, job) == ["COMPLETED"]
        assert job.stream.size_bytes <= 200
        assert job.stream.dropped > 4000
        assert job.read_stream()[-1] == 5000


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


async def test_memory_that_is_not_there_is_refused_before_loading() -> None:
    async with running(Upper(), memory_gib=1e9) as service:
        await until(lambda: service.state is ServiceState.FAILED)
        assert "it needs 1e+09 GiB on cpu" in (service.reason or "")
    check_memory(0, "cpu")


async def test_results_are_forgotten_by_count_and_by_time() -> None:
    async with running(Upper(), keep_results=2, keep_results_s=0.05) as service:
        jobs = [ask(service, "a") for _ in range(4)]
        await ended(service, *jobs)
        assert service._jobs.remembered_bytes <= 2 * jobs[0].size_bytes
        await until(lambda: service._jobs.remembered_bytes == 0)
        for job in jobs:
            with pytest.raises(JobNotFound, match="not found or expired"):
                service.get(job.id)
