"""From the queue to the model and back: prepare ahead, batch or join the running rows, shape the output, end each once.

The way of one attempt at a job, all of it on the event loop except the model's calls::

    QUEUED -> PREPARING -> READY -> RUNNING -> FINISHING -> gone
                 |           |         |           |
                 +-----------+---------+-----------+--> gone, as soon as its job ends for any reason

:class:`Scheduler` owns the queues, preprocessing and postprocessing. What is particular to the two kinds of handler is
in :class:`BatchScheduler` (one call answers a batch) and :class:`StepScheduler` (rows join and leave between steps). At
most ``prefetch`` attempts are prepared ahead of the model, so memory is bounded and priority still counts.
"""

from __future__ import annotations

import abc
import asyncio
import heapq
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, Future
from enum import Enum, auto
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

import attrs
import msgspec

from aiservices.errors import JobFailed, ModelBroken, OutOfMemory, ServiceError
from aiservices.handler import BatchHandler, Handler, MediaKind, StepHandler, Task
from aiservices.job import Destination, Job, JobStatus, Packed
from aiservices.logs import get_logger
from aiservices.settings import ServiceConfig

T = TypeVar("T")
P = ParamSpec("P")

AnyTask = Task[Any]
Outcome = tuple[AnyTask, Any]

log = get_logger(__name__)


class ModelThread(Protocol):
    """The model's own thread (:class:`aiservices.executor.ModelExecutor`)."""

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run a call on the model's thread."""

    def translate(self, error: Exception) -> Exception:
        """Turn a device library's error into the core's words. On the model's thread."""


class Fetch(Protocol):
    """The guarded download (:meth:`aiservices.fetch.Fetcher.fetch`)."""

    def __call__(self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Download a URL, or raise FetchError."""


class Outputs(Protocol):
    """Makes the answer of what a handler gave (:class:`aiservices.storage.outputs.OutputStore`)."""

    def pack(self, output: Any, destination: Destination | None) -> bytes | Packed:
        """Encode an output; one with files for a bucket comes back in parts. In the pool."""

    async def store(self, packed: Packed, job: Job) -> bytes:
        """Put the files into the bucket; return the answer with their URLs, or raise ServiceError."""


@attrs.frozen(kw_only=True)
class House:
    """What a scheduler uses of the service around it.

    Attributes:
        start: the model takes the job (IN_PROGRESS).
        broken: the model's device is beyond repair, for this reason.
        batch: a batch, or a step, of so many jobs runs (metrics).
        fetch: guarded download.
        outputs: encodes what a handler gave, large files by way of a bucket.
        pool: threads for preprocessing and postprocessing.
        thread: the model's thread.
    """

    start: Callable[[Job], None]
    broken: Callable[[str], None]
    batch: Callable[[int], None]
    fetch: Fetch
    outputs: Outputs
    pool: Executor
    thread: ModelThread


class Relay:
    """Carries calls from any thread to the event loop in their order, with one wake-up for as many as are waiting."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._awake = False

    def bind(self) -> None:
        """Deliver to the running loop from now on."""
        self._loop = asyncio.get_running_loop()

    def post(self, call: Callable[[], None]) -> None:
        """Have the loop make this call soon; after the loop was closed it is dropped."""
        assert self._loop is not None
        with self._lock:
            self._calls.append(call)
            if self._awake:
                return
            self._awake = True
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            self._calls.clear()

    def _drain(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, deque()
            self._awake = False
        for call in calls:
            call()


class Stage(Enum):
    """Where an attempt is."""

    QUEUED = auto()
    PREPARING = auto()
    READY = auto()
    RUNNING = auto()
    FINISHING = auto()


class Attempt:
    """One attempt at one job on its way; also the :class:`~aiservices.handler.Context` that its handler sees."""

    def __init__(self, job: Job, house: House, relay: Relay) -> None:
        self.job = job
        self.number = job.attempt
        self.stage = Stage.QUEUED
        self.task: AnyTask | None = None
        self.preparing: asyncio.Task[None] | None = None
        self.finishing: asyncio.Task[None] | None = None
        self._house = house
        self._relay = relay
        self._cancelled = False
        self._deadline: float | None = None

    def __lt__(self, other: Attempt) -> bool:
        return self.job.priority < other.job.priority

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def cancelled(self) -> bool:
        """Whether the job has ended meanwhile."""
        return self._cancelled

    @property
    def deadline(self) -> float | None:
        """When the job times out, in seconds of the loop's clock; None before it runs."""
        return self._deadline

    @property
    def current(self) -> bool:
        """Whether this attempt may still end its job."""
        return not self._cancelled and self.job.is_current(self.number)

    def start(self) -> None:
        """The model takes this attempt."""
        self._house.start(self.job)
        self._deadline = (self.job.started_at or 0.0) + self.job.policy.timeout_s

    def abandon(self) -> None:
        """The job ended: stop preparing or uploading, let the handler see it, let go of what it holds."""
        self._cancelled = True
        for task in (self.preparing, self.finishing):
            if task is not None:
                task.cancel()

    def progress(self, fraction: float) -> None:
        """Report how much is done, 0 to 1."""
        self._relay.post(partial(self.job.set_progress, self.number, fraction))

    def emit(self, chunk: Any) -> None:
        """Add one chunk to the job's stream."""
        self._relay.post(partial(self.job.add_chunk, self.number, msgspec.json.encode(chunk)))

    async def fetch(self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None) -> bytes:
        """Download a stranger's URL through the guard."""
        return await self._house.fetch(url, field=field, kind=kind, max_bytes=max_bytes)

    async def run_in_pool(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run CPU-heavy work in the pool."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._house.pool, partial(function, *args, **kwargs))

    def finish(self, status: JobStatus, *, output: bytes | None = None, error: str | None = None) -> None:
        """End the job, unless something else already did."""
        self.job.finish(status, attempt=self.number, output=output, error=error)

    def fail(self, error: Exception) -> None:
        """End the job as FAILED with a text its caller may read; log whole what is unexpected."""
        if isinstance(error, ServiceError):
            text = str(error)
        else:
            text = f"internal error (job {self.job.id})"
            if self.current:
                log.error("job.failed_unexpectedly", service=self.job.service, job=self.job.id, exc_info=error)
        self.finish(JobStatus.FAILED, error=text)


class Scheduler(abc.ABC):
    """Leads every attempt through its stages. Lives on the event loop.

    Args:
        handler: the service's handler.
        config: bounds of batch, prefetch and wait.
        house: what it uses of the service around it.
    """

    def __init__(self, handler: Handler[Any, Any, Any, Any], config: ServiceConfig, house: House) -> None:
        self._handler = handler
        self._config = config
        self._house = house
        self._relay = Relay()
        self._attempts: dict[str, Attempt] = {}
        self._queue: list[Attempt] = []
        self._ready: list[Attempt] = []
        self._counts = dict.fromkeys(Stage, 0)
        self._background: set[asyncio.Task[None]] = set()
        self._open = False
        self._row_limit = config.max_batch_size
        self._prefetch = max(config.prefetch, config.max_batch_size)  # or no batch could ever fill

    def open(self) -> None:
        """The model is loaded: begin to work."""
        self._relay.bind()
        self._open = True
        self._pump()

    def shut(self) -> None:
        """The model is gone: take no further attempt."""
        self._open = False

    def add(self, job: Job) -> None:
        """A job waits in the queue."""
        attempt = Attempt(job, self._house, self._relay)
        self._attempts[job.id] = attempt
        self._counts[Stage.QUEUED] += 1
        heapq.heappush(self._queue, attempt)
        self._pump()

    def discard(self, job: Job) -> None:
        """A job ended: take its attempt out, wherever it is."""
        attempt = self._attempts.pop(job.id, None)
        if attempt is None:
            return
        attempt.abandon()
        self._counts[attempt.stage] -= 1
        self._withdraw(attempt)
        self._compact()
        self._pump()

    async def close(self) -> None:
        """Stop preparing and postprocessing. Every job has ended before."""
        self.shut()
        tasks = [*self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @abc.abstractmethod
    def _feed(self) -> None:
        """Hand ready attempts to the model as far as it has room."""

    @abc.abstractmethod
    def _withdraw(self, attempt: Attempt) -> None:
        """Stop the model's work on an attempt whose job ended, where that is possible."""

    def _move(self, attempt: Attempt, stage: Stage) -> None:
        self._counts[attempt.stage] -= 1
        self._counts[stage] += 1
        attempt.stage = stage

    def _pump(self) -> None:
        """Move whatever can move."""
        if not self._open:
            return
        while self._counts[Stage.PREPARING] + self._counts[Stage.READY] < self._prefetch:
            attempt = _pop_current(self._queue)
            if attempt is None:
                break
            self._move(attempt, Stage.PREPARING)
            attempt.preparing = self._spawn(self._prepare(attempt))
        self._feed()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _prepare(self, attempt: Attempt) -> None:
        try:
            item = await self._handler.preprocess(attempt.job.input, attempt)
        except asyncio.CancelledError:
            # Ours, when the job ended or the house closes; a library's own must still end the job.
            attempt.preparing = None
            if attempt.current and self._open:
                attempt.fail(JobFailed("preprocessing was interrupted"))
            raise
        except Exception as error:
            attempt.preparing = None
            attempt.fail(error)
            return
        attempt.preparing = None
        if not attempt.current:
            return
        attempt.task = Task(item, attempt)
        self._move(attempt, Stage.READY)
        heapq.heappush(self._ready, attempt)
        self._pump()

    def _take(self, room: int) -> list[Attempt]:
        """Take up to ``room`` ready attempts, best first; they run now."""
        room = min(room, self._prefetch - self._counts[Stage.FINISHING])
        taken: list[Attempt] = []
        while len(taken) < room and (attempt := _pop_current(self._ready)) is not None:
            self._move(attempt, Stage.RUNNING)
            attempt.start()
            taken.append(attempt)
        return taken

    def _settle(self, attempt: Attempt, result: Any) -> None:
        """The model answered for one attempt: postprocess, or fail it alone."""
        if isinstance(result, ModelBroken):
            self._house.broken(str(result))
        elif not attempt.current:
            return
        elif isinstance(result, Exception):
            attempt.fail(result)
        else:
            self._move(attempt, Stage.FINISHING)
            attempt.finishing = self._spawn(self._complete(attempt, result))

    async def _complete(self, attempt: Attempt, result: Any) -> None:
        try:
            output = await attempt.run_in_pool(self._encode, result, attempt.job.destination)
            if isinstance(output, Packed):
                output = await self._house.outputs.store(output, attempt.job)
        except Exception as error:
            attempt.finishing = None
            attempt.fail(error)
        else:
            attempt.finishing = None
            attempt.finish(JobStatus.COMPLETED, output=output)

    def _encode(self, result: Any, destination: Destination | None) -> bytes | Packed:
        return self._house.outputs.pack(self._handler.postprocess(result), destination)

    def _learn(self, error: Exception | None, rows: int) -> None:
        """Out of memory halves the rows that run together; each success lets one more in again."""
        if isinstance(error, OutOfMemory):
            self._row_limit = max(1, rows // 2)
            log.warning("scheduler.out_of_memory", service=self._config.name, rows=rows, limit=self._row_limit)
        elif error is None and rows >= self._row_limit:
            self._row_limit = min(self._config.max_batch_size, self._row_limit + 1)

    def _compact(self) -> None:
        """Drop ended attempts from the heaps once they are the greater part, so that memory follows the live ones."""
        for heap in (self._queue, self._ready):
            if len(heap) > 64 + 2 * len(self._attempts):
                heap[:] = [attempt for attempt in heap if attempt.current]
                heapq.heapify(heap)


class BatchScheduler(Scheduler):
    """Collects ready attempts into batches: up to ``max_batch_size``, waiting ``batch_wait_s`` after the first."""

    _handler: BatchHandler[Any, Any, Any, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._busy = False
        self._waiting: asyncio.TimerHandle | None = None

    def shut(self) -> None:
        """Take no further attempt."""
        super().shut()
        self._stop_waiting()

    def _feed(self) -> None:
        ready = self._counts[Stage.READY]
        if self._busy or ready == 0:
            return
        if ready >= self._row_limit or self._config.batch_wait_s == 0:
            self._dispatch()
        elif self._waiting is None:
            self._waiting = asyncio.get_running_loop().call_later(self._config.batch_wait_s, self._dispatch)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _dispatch(self) -> None:
        self._stop_waiting()
        batch = [] if self._busy or not self._open else self._take(self._row_limit)
        if not batch:
            return
        self._busy = True
        self._house.batch(len(batch))
        self._spawn(self._run(batch))

    async def _run(self, batch: Sequence[Attempt]) -> None:
        tasks = [attempt.task for attempt in batch if attempt.task is not None]
        try:
            results = await asyncio.wrap_future(self._house.thread.submit(partial(self._predict, tasks)))
        except Exception as error:
            results = [error] * len(batch)
        failure = next((result for result in results if isinstance(result, OutOfMemory)), None)
        self._learn(failure, len(batch))
        self._busy = False
        for attempt, result in zip(batch, results, strict=True):
            attempt.task = None
            self._settle(attempt, result)
        self._pump()

    def _predict(self, tasks: Sequence[AnyTask]) -> list[Any]:
        """On the model's thread."""
        results = list(self._handler.predict(tasks))
        if len(results) != len(tasks):
            raise TypeError(f"predict returned {len(results)} results for {len(tasks)} tasks")
        translate = self._house.thread.translate
        return [translate(result) if isinstance(result, Exception) else result for result in results]

    def _withdraw(self, attempt: Attempt) -> None:
        """A one-shot call cannot be stopped; its late result is dropped."""


class StepScheduler(Scheduler):
    """Keeps a handler's rows stepping on the model's thread; between two steps rows join and leave.

    The loop writes what shall happen into ``_inbox``; :meth:`_drive` runs on the model's thread as long as there are
    rows, reads the inbox before each step and posts what came out back to the loop. ``_lock`` guards the inbox and the
    decision to stop driving, nothing else. A row's place is free again once the model's thread has let go of it.
    """

    _handler: StepHandler[Any, Any, Any, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rows: dict[AnyTask, Attempt] = {}  # as the loop knows them
        self._lock = threading.Lock()
        self._joining: list[AnyTask] = []
        self._leaving: list[AnyTask] = []
        self._driving = False

    def _feed(self) -> None:
        batch = self._take(self._row_limit - len(self._rows))
        if not batch:
            return
        tasks = [attempt.task for attempt in batch if attempt.task is not None]
        self._rows.update(zip(tasks, batch, strict=True))
        self._tell(joining=tasks)

    def _withdraw(self, attempt: Attempt) -> None:
        if attempt.stage is Stage.RUNNING and attempt.task is not None:
            self._tell(leaving=[attempt.task])

    def _tell(self, *, joining: Sequence[AnyTask] = (), leaving: Sequence[AnyTask] = ()) -> None:
        with self._lock:
            self._joining += joining
            self._leaving += leaving
            if self._driving:
                return
            self._driving = True
        self._house.thread.submit(self._drive).add_done_callback(self._driven)

    def _driven(self, future: Future[None]) -> None:
        """On the model's thread: driving ended; if by an error, nobody would ever step the rows again."""
        error = future.exception()
        if error is not None:
            self._relay.post(partial(self._house.broken, f"the model's thread failed: {error!r}"))

    def _drive(self) -> None:
        """On the model's thread: step until no row is left and nobody waits to join."""
        rows: set[AnyTask] = set()
        while True:
            with self._lock:
                joining, self._joining = self._joining, []
                leaving, self._leaving = self._leaving, []
                if not (rows or joining or leaving):
                    self._driving = False
                    return
            stillborn = [task for task in joining if task.context.cancelled]
            self._let_go(rows, [task for task in leaving if task in rows], stillborn)
            self._let_join(rows, [task for task in joining if task not in stillborn])
            if rows:
                self._step(rows)

    def _let_go(self, rows: set[AnyTask], evicted: Sequence[AnyTask], stillborn: Sequence[AnyTask]) -> None:
        """Evict rows whose jobs ended, and tell the loop that their places, and those never taken, are free."""
        if evicted:
            rows.difference_update(evicted)
            try:
                self._handler.evict(evicted)
            except Exception as error:
                self._fail_rows(rows, error)
        if evicted or stillborn:
            self._relay.post(partial(self._freed, [*evicted, *stillborn]))

    def _let_join(self, rows: set[AnyTask], joining: Sequence[AnyTask]) -> None:
        if not joining:
            return
        try:
            self._handler.admit(joining)
        except Exception as error:
            translated = self._house.thread.translate(error)
            self._post([(task, translated) for task in joining], translated, len(rows) + len(joining))
        else:
            rows.update(joining)

    def _step(self, rows: set[AnyTask]) -> None:
        count = len(rows)
        try:
            finished = self._handler.step()
        except Exception as error:
            self._fail_rows(rows, error)
            return
        if finished:
            rows.difference_update(task for task, _ in finished)
            translate = self._house.thread.translate
            self._post([(t, translate(r) if isinstance(r, Exception) else r) for t, r in finished], None, count)

    def _fail_rows(self, rows: set[AnyTask], error: Exception) -> None:
        """A step failed: no row can be trusted any more. The handler lets go of them before their memory is freed."""
        count, failed = len(rows), list(rows)
        rows.clear()
        broken = self._reset()
        translated = self._house.thread.translate(error)
        self._post([(task, translated) for task in failed], translated, count)
        if broken is not None:
            self._relay.post(partial(self._house.broken, broken))

    def _reset(self) -> str | None:
        """On the model's thread: have the handler forget its rows; if it cannot, say why it is beyond repair."""
        try:
            self._handler.reset()
        except Exception as error:
            return f"the handler could not be reset after an error: {error}"
        return None

    def _post(self, outcomes: Sequence[Outcome], error: Exception | None, count: int) -> None:
        self._relay.post(partial(self._deliver, outcomes, error, count))

    def _deliver(self, outcomes: Sequence[Outcome], error: Exception | None, count: int) -> None:
        self._house.batch(count)
        self._learn(error, count)
        for task, result in outcomes:
            attempt = self._rows.pop(task, None)
            if attempt is not None:
                attempt.task = None
                self._settle(attempt, result)
        self._pump()

    def _freed(self, tasks: Sequence[AnyTask]) -> None:
        for task in tasks:
            self._rows.pop(task, None)
        self._pump()


def make_scheduler(handler: Handler[Any, Any, Any, Any], config: ServiceConfig, house: House) -> Scheduler:
    """Return the scheduler that fits the handler's kind."""
    if isinstance(handler, StepHandler):
        return StepScheduler(handler, config, house)
    if isinstance(handler, BatchHandler):
        return BatchScheduler(handler, config, house)
    raise TypeError(f"{type(handler).__name__} is neither a BatchHandler nor a StepHandler")


def _pop_current(heap: list[Attempt]) -> Attempt | None:
    """Pop the best attempt whose job has not ended."""
    while heap:
        attempt = heapq.heappop(heap)
        if attempt.current:
            return attempt
    return None
