"""The job core under any order of events: each accepted job ends exactly once, and nothing is left behind.

The service is real: job manager, scheduler, executor with its own thread. What is replaced is time (a loop whose clock
the machine turns) and the model (a handler that works only when the machine says so). Loop and model's thread take
turns, so that one sequence of events always does the same.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from aiservices.executor import ModelExecutor
from aiservices.scheduler import Scheduler, StepScheduler
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiservices.errors import Conflict, JobNotFound, QueueFull, Unavailable
from aiservices.handler import Task
from aiservices.jobs import ENDED, RETRYABLE, Job, JobRequest, JobStatus
from aiservices.service import Service
from tests.fakes import Counting, DirectExecutor, TextInput, TextOutput, Upper, make_service, make_shared

TTL_S = 50.0
TIMEOUT_S = 20.0
KEEP_S = 100.0
QUEUE_SIZE = 6
TROUBLES = ["fail", "explode", "bad-step", "bad-row", "bad-join"]


class TurnedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands until the test turns it."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def settle(self) -> None:
        """Run whatever is due, until nothing is."""
        for _ in range(12):
            self.call_soon(self.stop)
            self.run_forever()


class JobMachine(RuleBasedStateMachine):
    """Whatever a caller, the clock, the model and the operator may do, in any order."""

    service: Service

    def __init__(self) -> None:
        super().__init__()
        self.loop = TurnedLoop()
        self.jobs: dict[str, Job] = {}
        self.endings: dict[tuple[str, int], int] = {}
        self.draining = False

    def make_handler(self) -> TurnedUpper | Counting:
        raise NotImplementedError

    @initialize()
    def start(self) -> None:
        self.handler = self.make_handler()
        self.service = make_service(self.handler, shared=make_shared(DirectExecutor()), **LIMITS)
        self.model = Turns(self.service._executor, self.handler.waiting)
        ended = self.service._on_ended

        def count(job: Job) -> None:
            key = (job.id, job.attempt)
            self.endings[key] = self.endings.get(key, 0) + 1
            ended(job)

        self.service._jobs._on_ended = count
        self.run(self.service.start())

    @rule(
        texts=st.lists(st.sampled_from(["ok"] * 6 + TROUBLES), min_size=1, max_size=4),
        count=st.integers(1, 6),
        low=st.booleans(),
        key=st.sampled_from([None, None, "a", "b"]),
    )
    def submit(self, texts: list[str], count: int, low: bool, key: str | None) -> None:
        for text in texts:
            request = JobRequest(
                input={"text": text, "count": count}, low_priority=low, idempotency_key=key, input_bytes=9
            )
            job = self.call(self.service.submit, request, allowed=(QueueFull, Unavailable, Conflict))
            if job is not None:
                self.jobs[job.id] = job

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self.pick(data)
        before = job.status
        cancelled = self.call(self.service.cancel, job.id, allowed=(JobNotFound,))
        if cancelled is not None:
            assert job.status is (before if before in ENDED else JobStatus.CANCELLED)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job = self.pick(data)
        before = job.status
        retried = self.call(self.service.retry, job.id, allowed=(JobNotFound, Conflict, QueueFull, Unavailable))
        assert retried is None or before in RETRYABLE

    @rule()
    def purge(self) -> None:
        waiting = [job for job in self.jobs.values() if job.status is JobStatus.IN_QUEUE]
        assert self.call(self.service.purge) == len(waiting)
        assert all(job.status is JobStatus.CANCELLED for job in waiting)

    @rule(seconds=st.sampled_from([0.02, 0.02, 5.0, TIMEOUT_S + 1, TTL_S + 1, KEEP_S + 1]))
    def pass_time(self, seconds: float) -> None:
        self.loop.now += seconds
        self.settle()

    @rule(turns=st.integers(1, 5))
    def let_the_model_work(self, turns: int) -> None:
        for _ in range(turns):
            self.work()

    @precondition(lambda self: not self.draining and len(self.jobs) >= 12)  # late, or little else would happen
    @rule()
    def drain(self) -> None:
        self.draining = True
        self.run(self.service.drain(0.0))
        assert all(job.ended for job in self.jobs.values())

    @invariant()
    def every_attempt_ends_at_most_once(self) -> None:
        assert all(times == 1 for times in self.endings.values())
        for job in self.jobs.values():
            assert job.done.is_set() == job.ended == ((job.id, job.attempt) in self.endings)

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "service"):
            return
        manager = self.service._jobs
        waiting = [job for job in self.jobs.values() if job.status is JobStatus.IN_QUEUE]
        running = [job for job in self.jobs.values() if job.status is JobStatus.IN_PROGRESS]
        assert (manager.queued_count, manager.running_count) == (len(waiting), len(running))
        assert manager._queued_bytes == 9 * len(waiting)
        assert manager.queued_count <= QUEUE_SIZE
        assert set(manager._deadlines) == {job.id for job in [*waiting, *running]}
        scheduler: Scheduler = self.service._scheduler
        assert set(scheduler._attempts) == {job.id for job in [*waiting, *running]}
        assert sum(scheduler._counts.values()) == len(scheduler._attempts)

    def teardown(self) -> None:
        if hasattr(self, "service"):
            self.model.go(self.handler)
            self.run(self.finish(), free=True)
            assert all(job.ended for job in self.jobs.values()), "a job was forgotten on its way"
            assert not self.service._scheduler._attempts
        self.loop.close()

    async def finish(self) -> None:
        """Let the model work freely until every job has ended, then close."""
        for _ in range(2000):
            if self.service._jobs.live_count == 0 and self.nothing_left():
                break
            self.loop.now += 0.01
            await asyncio.to_thread(threading.Event().wait, 0.0005)
        assert self.service._jobs.live_count == 0, "a job was forgotten on its way"
        assert self.nothing_left(), "a place on the model was lost"
        await self.service.close()

    def nothing_left(self) -> bool:
        """Whether scheduler and handler have let go of every job."""
        return True

    def pick(self, data: st.DataObject) -> Job:
        return data.draw(st.sampled_from(list(self.jobs.values())))

    def run(self, coroutine: Any, *, free: bool = False) -> None:
        self.loop.run_until_complete(coroutine)
        if not free:
            self.settle()

    def call(self, function: Any, *args: Any, allowed: tuple[type[Exception], ...] = ()) -> Any:
        async def on_loop() -> Any:
            try:
                return function(*args)
            except allowed:
                return None

        result = self.loop.run_until_complete(on_loop())
        self.settle()
        return result

    def work(self) -> None:
        """One turn of the model, if it is at work."""
        if self.handler.waiting.is_set():
            self.handler.waiting.clear()
            self.handler.turn.release()
            self.model.await_rest()
            self.settle()

    def settle(self) -> None:
        """Let loop and model's thread come to rest: the thread idle, or waiting for its turn."""
        self.loop.settle()
        while self.model.held and not self.handler.waiting.is_set():
            self.model.start_next()
            self.loop.settle()


class Turns:
    """Makes the model's thread begin a call only when the test says so, and the test wait until it rests."""

    def __init__(self, executor: ModelExecutor, waiting: threading.Event) -> None:
        self.held: list[Future[Any]] = []
        self._running: Future[Any] | None = None
        self._waiting = waiting
        self._starts = threading.Semaphore(0)
        self._free = False
        self._submit = executor.submit
        executor.submit = self.submit  # type: ignore[method-assign]

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        def held() -> Any:
            if not self._free:
                assert self._starts.acquire(timeout=10), "the test never started this call"
            return function()

        future = self._submit(held)
        self.held.append(future)
        return future

    def start_next(self) -> None:
        self._running = self.held.pop(0)
        self._starts.release()
        self.await_rest()

    def await_rest(self) -> None:
        for _ in range(10_000):
            if self._waiting.is_set() or self._running is None or self._running.done():
                return
            self._waiting.wait(0.001)
        raise AssertionError("the model's thread did not come to rest")

    def go(self, handler: TurnedUpper | Counting) -> None:
        """Let everything run freely from now on."""
        self._free = handler.free_running = True
        self._starts.release(1000)
        handler.turn.release(1000)


class TurnedUpper(Upper):
    """Answers a batch only when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.free_running = False
        self.turn = threading.Semaphore(0)
        self.waiting = threading.Event()

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextOutput | Exception]:
        if not self.free_running:
            self.waiting.set()
            assert self.turn.acquire(timeout=10), "the test never gave the next turn"
        return super().predict(tasks)


class BatchMachine(JobMachine):
    """Over one-shot batches."""

    def make_handler(self) -> TurnedUpper:
        return TurnedUpper()


class StepMachine(JobMachine):
    """Over rows that join and leave between steps."""

    def make_handler(self) -> Counting:
        return Counting(free_running=False)

    def nothing_left(self) -> bool:
        scheduler, handler = self.service._scheduler, self.handler
        assert isinstance(scheduler, StepScheduler)
        assert isinstance(handler, Counting)
        return not scheduler._rows and not handler.rows and not scheduler._driving

    @rule()
    def two_steps_later_no_ended_job_has_a_row(self) -> None:
        assert isinstance(self.handler, Counting)
        ended = [task for task in list(self.handler.rows) if task.context.cancelled]
        self.work()
        self.work()
        assert not set(ended) & set(self.handler.rows)
        assert len(self.handler.rows) <= LIMITS["max_batch_size"]


LIMITS: dict[str, Any] = {
    "max_batch_size": 3,
    "batch_wait_s": 0.01,
    "prefetch": 4,
    "queue_size": QUEUE_SIZE,
    "timeout_s": TIMEOUT_S,
    "ttl_s": TTL_S,
    "keep_results_s": KEEP_S,
    "keep_results": 5,
}

SETTINGS = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("machine", [BatchMachine, StepMachine])
def test_each_accepted_job_ends_exactly_once(machine: type[JobMachine]) -> None:
    run_state_machine_as_test(machine, settings=SETTINGS)
