"""The job core under any order of events: each accepted job ends exactly once, and nothing is left behind.

The service is real: job manager, pipeline, driver, the model's own thread. What is replaced is time (a loop whose clock
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

from aiservices.callers import ANYONE
from aiservices.errors import Conflict, JobNotFound, QueueFull, Unavailable
from aiservices.handler import Context, Task
from aiservices.jobs import ENDED, RETRYABLE, Job, JobRequest, JobStatus, Stage, fingerprint
from aiservices.model import ModelThread, ServiceState
from aiservices.pipeline.pipeline import STALLED_PER_PLACE
from aiservices.service import Service
from tests.fakes import Counting, DirectExecutor, TextInput, TextOutput, Upper, make_service, make_shared
from tests.turned_loop import TurnedLoop

TTL_S = 50.0
TIMEOUT_S = 20.0
KEEP_S = 100.0
QUEUE_SIZE = 6
PREFETCH = 4
PREPARE_S = 30.0
HANG_S = 15.0
TROUBLES = ["fail", "explode", "bad-step", "bad-row", "bad-join", "no-preprocess", "bad-finish"]
SLOW = "slow"


LIMITS: dict[str, Any] = {
    "max_batch_size": 3,
    "prefetch": PREFETCH,
    "queue_size": QUEUE_SIZE,
    "timeout_s": TIMEOUT_S,
    "ttl_s": TTL_S,
    "prepare_timeout_s": PREPARE_S,
    "hang_s": HANG_S,
    "keep_results_s": KEEP_S,
    "keep_results": 5,
}


class JobMachine(RuleBasedStateMachine):
    """Whatever a caller, the clock, the model and the operator may do, in any order."""

    service: Service
    limits = LIMITS

    def __init__(self) -> None:
        super().__init__()
        self.loop = TurnedLoop()
        self.jobs: dict[str, Job] = {}
        self.endings: dict[tuple[str, int], int] = {}
        self.draining = False
        self.hanging = False

    def make_handler(self) -> TurnedUpper | TurnedCounting:
        raise NotImplementedError

    @initialize()
    def start(self) -> None:
        self.handler = self.make_handler()
        self.service = make_service(self.handler, shared=make_shared(DirectExecutor()), **self.limits)
        self.model = Turns(self.service._model.thread, self.handler.waiting)
        announce = self.service._jobs.announcer.ended

        def count(job: Job) -> None:
            key = (job.id, job.attempt)
            self.endings[key] = self.endings.get(key, 0) + 1
            announce(job)

        self.service._jobs.announcer.ended = count  # type: ignore[method-assign]
        self.run(self.service.start())

    @rule(
        texts=st.lists(st.sampled_from(["ok"] * 6 + [SLOW] * 4 + TROUBLES), min_size=1, max_size=4),
        count=st.integers(1, 6),
        low=st.booleans(),
        key=st.sampled_from([None, None, "a", "b"]),
    )
    def submit(self, texts: list[str], count: int, low: bool, key: str | None) -> None:
        for text in texts:
            given = {"text": text, "count": count}
            request = JobRequest(
                input=given, low_priority=low, idempotency_key=key, input_bytes=9, fingerprint=fingerprint(given)
            )
            job = self.call(self.service.submit, request, allowed=(QueueFull, Unavailable, Conflict))
            if job is not None:
                self.jobs[job.id] = job

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self.pick(data)
        before = job.status
        cancelled = self.call(self.service.cancel, job.id, ANYONE, allowed=(JobNotFound,))
        if cancelled is not None:
            assert job.status is (before if before in ENDED else JobStatus.CANCELLED)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job = self.pick(data)
        before = job.status
        retried = self.call(self.service.retry, job.id, ANYONE, allowed=(JobNotFound, Conflict, QueueFull, Unavailable))
        assert retried is None or before in RETRYABLE

    @rule()
    def purge(self) -> None:
        waiting = [job for job in self.jobs.values() if job.status is JobStatus.IN_QUEUE]
        assert self.call(self.service.purge, ANYONE) == len(waiting)
        assert all(job.status is JobStatus.CANCELLED for job in waiting)

    @rule()
    def warm_up(self) -> None:
        job = self.call(self.service.submit, JobRequest(input={"action": "warmup"}), allowed=(QueueFull, Unavailable))
        if job is not None:
            self.jobs[job.id] = job
            assert job.ended == (self.service.state is ServiceState.READY)

    @rule(seconds=st.sampled_from([0.02, 0.02, 1.5, 5.0, TIMEOUT_S + 1, PREPARE_S + 1, TTL_S + 1, KEEP_S + 1]))
    def pass_time(self, seconds: float) -> None:
        """Turn the clock; a model that is at work meanwhile for longer than it may is left to hang."""
        if self.handler.waiting.is_set() and seconds > TIMEOUT_S:
            self.work()
        self.loop.now += seconds
        self.settle()

    @rule(count=st.integers(1, 4))
    def let_slow_ones_get_ready(self, count: int) -> None:
        for gate in self.handler.preparing[:count]:
            self.loop.call_soon(gate.set)
        del self.handler.preparing[:count]
        self.settle()

    @precondition(lambda self: not self.hanging and len(self.jobs) >= 12 and self.handler.waiting.is_set())
    @rule()
    def hang(self) -> None:
        """The model does not come back from its step: every job ends, and the service says why."""
        self.hanging = True
        self.loop.now += TIMEOUT_S + 0.1
        self.settle()
        self.loop.now += HANG_S
        self.settle()
        assert self.service.broken
        assert self.service.state is ServiceState.FAILED
        assert "hangs" in str(self.service.reason)
        assert all(job.ended for job in self.jobs.values())

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
            assert job.ended == ((job.id, job.attempt) in self.endings)

    @invariant()
    def the_bounds_hold(self) -> None:
        if not hasattr(self, "service"):
            return
        jobs = self.service._jobs
        assert jobs.waiting_count <= QUEUE_SIZE
        stalled = jobs.count(Stage.STALLED)
        assert stalled <= STALLED_PER_PLACE * PREFETCH
        # One that was stalled may get ready beside those that took its place.
        assert jobs.count(Stage.PREPARING) + jobs.count(Stage.READY) + stalled <= PREFETCH * (1 + STALLED_PER_PLACE)
        assert jobs.count(Stage.RUNNING) <= LIMITS["max_batch_size"]
        for job in self.jobs.values():
            assert (job.timer is None) == job.ended

    @invariant()
    def callers_count_what_the_service_counts(self) -> None:
        """The counts that health and metrics show are those of the jobs that callers hold."""
        if not hasattr(self, "service"):
            return
        states = [job.status for job in self.jobs.values()]
        shown = self.service.health()["jobs"]
        assert shown["inQueue"] == states.count(JobStatus.IN_QUEUE)
        assert shown["inProgress"] == states.count(JobStatus.IN_PROGRESS)
        assert self.service.busy == any(status not in ENDED for status in states)
        waiting = [job for job in self.jobs.values() if job.status is JobStatus.IN_QUEUE]
        places = sorted(self.service.status(job)["queuePosition"] for job in waiting)
        assert places == list(range(1, len(waiting) + 1))
        assert self.service._jobs._queue.size_bytes == sum(job.request.input_bytes for job in waiting)

    def teardown(self) -> None:
        if hasattr(self, "service"):
            self.model.go(self.handler)
            self.run(self.finish(), free=True)
            assert all(job.ended for job in self.jobs.values()), "a job was forgotten on its way"
        self.loop.close()

    async def finish(self) -> None:
        """Let the model work freely until every job has ended, then close."""
        for _ in range(2000):
            for gate in self.handler.preparing:
                gate.set()
            if not self.service.busy and self.nothing_left():
                break
            self.loop.now += 0.01
            await asyncio.to_thread(threading.Event().wait, 0.0005)
        assert not self.service.busy, "a job was forgotten on its way"
        assert self.nothing_left(), "a place on the model was lost"
        await self.service.close()

    def nothing_left(self) -> bool:
        """Whether pipeline and handler have let go of every job."""
        return self.service._pipeline.empty

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

    def __init__(self, thread: ModelThread, waiting: threading.Event) -> None:
        self.held: list[Future[Any]] = []
        self._running: Future[Any] | None = None
        self._waiting = waiting
        self._starts = threading.Semaphore(0)
        self._free = False
        self._submit = thread.submit
        thread.submit = self.submit  # type: ignore[method-assign]

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

    def go(self, handler: TurnedUpper | TurnedCounting) -> None:
        """Let everything run freely from now on."""
        self._free = handler.free_running = True
        self._starts.release(1000)
        handler.turn.release(1000)


class Turned:
    """Prepares an input at once, or, where its text says so, only when the test opens a gate; finishes in the pool."""

    preparing: list[asyncio.Event]

    async def preprocess(self, input: TextInput, context: Context) -> TextInput:
        if input.text == "no-preprocess":
            raise ValueError("cannot be prepared")
        if input.text == SLOW:
            gate = asyncio.Event()
            self.preparing.append(gate)
            await gate.wait()
        return input

    def postprocess(self, result: TextOutput) -> TextOutput:
        if result.text.lower().startswith("bad-finish"):
            raise ValueError("cannot be finished")
        return result


class TurnedUpper(Turned, Upper):
    """Answers a batch only when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.preparing = []
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


class TurnedCounting(Turned, Counting):
    """Steps only when the test says so."""

    def __init__(self) -> None:
        super().__init__(free_running=False)
        self.preparing = []


class StepMachine(JobMachine):
    """Over rows that join and leave between steps."""

    def make_handler(self) -> TurnedCounting:
        return TurnedCounting()

    def nothing_left(self) -> bool:
        assert isinstance(self.handler, TurnedCounting)
        return super().nothing_left() and (self.hanging or not self.handler.rows)

    @rule()
    def two_steps_later_no_ended_job_has_a_row(self) -> None:
        assert isinstance(self.handler, TurnedCounting)
        ended = [task for task in list(self.handler.rows) if task.context.cancelled]
        self.work()
        self.work()
        assert not set(ended) & set(self.handler.rows)
        assert len(self.handler.rows) <= LIMITS["max_batch_size"]


SETTINGS = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


class WaitingBatchMachine(BatchMachine):
    """Over batches for which an idle model waits a moment."""

    limits = {**LIMITS, "batch_wait_s": 0.01}  # noqa: RUF012  (never changed)


@pytest.mark.parametrize("machine", [BatchMachine, WaitingBatchMachine, StepMachine])
def test_each_accepted_job_ends_exactly_once(machine: type[JobMachine]) -> None:
    run_state_machine_as_test(machine, settings=SETTINGS)
