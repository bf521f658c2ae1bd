"""The job core under any order of events: each accepted job ends exactly once, and nothing is left behind.

The service is real: job manager, scheduler, executor with its own thread. What is replaced is time (a loop whose clock
the machine turns) and the model (a handler that takes a step only when the machine says so).
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
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
from aiservices.job import ENDED, RETRYABLE, Job, JobStatus
from aiservices.scheduler import BatchScheduler, Scheduler, StepScheduler
from aiservices.service import JobRequest, Service
from tests.fakes import Counting, DirectExecutor, Gated, make_service, make_shared

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

    def build(self) -> Service:
        raise NotImplementedError

    def model_turn(self) -> None:
        raise NotImplementedError

    def release_model(self) -> None:
        raise NotImplementedError

    @initialize()
    def start(self) -> None:
        self.service = self.build()
        ended = self.service._on_ended

        def count(job: Job) -> None:
            key = (job.id, job.attempt)
            self.endings[key] = self.endings.get(key, 0) + 1
            ended(job)

        self.service._jobs._on_ended = count
        self.run(self.service.start())
        self.settle_model()

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
        self.settle_model()

    @rule(turns=st.integers(1, 5))
    def let_the_model_work(self, turns: int) -> None:
        for _ in range(turns):
            self.model_turn()
            self.settle_model()

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
        self.release_model()
        if not self.draining:
            self.run(self.wait_until_idle())
            assert all(job.ended for job in self.jobs.values()), "a job was forgotten on its way"
            self.model_is_at_rest()
        self.run(self.service.close())
        assert all(job.ended for job in self.jobs.values())
        assert not self.service._scheduler._attempts
        self.loop.close()

    async def wait_until_idle(self) -> None:
        """Let the model work freely until every job has ended, in real time."""
        for _ in range(2000):
            self.loop.now += 0.01
            await asyncio.sleep(0)
            if self.service._jobs.live_count == 0:
                return
            await asyncio.to_thread(threading.Event().wait, 0.001)

    def model_is_at_rest(self) -> None:
        """Nothing is left of any job in the scheduler's or the handler's hands."""

    def pick(self, data: st.DataObject) -> Job:
        return data.draw(st.sampled_from(list(self.jobs.values())))

    def run(self, coroutine: Any) -> None:
        self.loop.run_until_complete(coroutine)
        self.settle_model()

    def call(self, function: Any, *args: Any, allowed: tuple[type[Exception], ...] = ()) -> Any:
        async def on_loop() -> Any:
            try:
                return function(*args)
            except allowed:
                return None

        result = self.loop.run_until_complete(on_loop())
        self.settle_model()
        return result

    def settle_model(self) -> None:
        """Let loop and model's thread come to rest: the thread idle, or waiting for its turn."""
        raise NotImplementedError


class BatchMachine(JobMachine):
    """Over one-shot batches."""

    def build(self) -> Service:
        self.handler = Gated()
        return make_service(self.handler, shared=make_shared(DirectExecutor()), **LIMITS)

    def model_turn(self) -> None:
        scheduler = self.service._scheduler
        assert isinstance(scheduler, BatchScheduler)
        if scheduler._busy:
            self.handler.gate.set()
            self.service._executor.submit(self.handler.gate.clear).result(10)
            self.handler.entered.clear()

    def settle_model(self) -> None:
        self.loop.settle()
        scheduler = self.service._scheduler
        assert isinstance(scheduler, BatchScheduler)
        if self.service._load_began and not scheduler._open and not self.draining:
            self.service._executor.submit(lambda: None).result(10)
            self.loop.settle()
        if scheduler._busy:
            assert self.handler.entered.wait(10)

    def release_model(self) -> None:
        self.handler.gate.set()


class StepMachine(JobMachine):
    """Over rows that join and leave between steps."""

    def build(self) -> Service:
        self.handler = Counting(free_running=False)
        return make_service(self.handler, shared=make_shared(DirectExecutor()), **LIMITS)

    def model_turn(self) -> None:
        if self.driving():
            self.handler.waiting.clear()
            self.handler.turn.release()

    def settle_model(self) -> None:
        for _ in range(3):
            self.loop.settle()
            if self.driving():
                self.await_rest()

    def driving(self) -> bool:
        scheduler = self.service._scheduler
        assert isinstance(scheduler, StepScheduler)
        return scheduler._driving

    def await_rest(self) -> None:
        while self.driving() and not self.handler.waiting.wait(0.001):
            pass

    def release_model(self) -> None:
        self.handler.free_running = True
        self.handler.turn.release(1000)

    def model_is_at_rest(self) -> None:
        for _ in range(1000):
            if not self.driving():
                break
            threading.Event().wait(0.001)
        self.loop.settle()
        scheduler = self.service._scheduler
        assert isinstance(scheduler, StepScheduler)
        assert not scheduler._rows
        assert not self.handler.rows

    @rule()
    def two_steps_later_no_ended_job_has_a_row(self) -> None:
        ended = [task for task in list(self.handler.rows) if task.context.cancelled]
        for _ in range(2):
            self.model_turn()
            self.settle_model()
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
