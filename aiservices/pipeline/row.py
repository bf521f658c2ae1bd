"""One attempt at one job on its way through the pipeline, and what its handler sees of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import attrs
import msgspec

from aiservices.errors import FetchError, InvalidInput, JobFailed, ModelBroken, OutOfMemory, ServiceError, contained
from aiservices.fetch import Fetcher
from aiservices.handler import MediaKind, Task, Unit
from aiservices.jobs import EndReason, Job, JobOutput, Stage
from aiservices.logs import get_logger
from aiservices.metrics import ServiceMetrics
from aiservices.outputs import OutputStore
from aiservices.pipeline.calls import LoopCalls
from aiservices.sandbox import ChildFunction, Children

T = TypeVar("T")
P = ParamSpec("P")

log = get_logger(__name__)


@attrs.frozen(kw_only=True)
class Tools:
    """What a pipeline works with.

    Attributes:
        fetcher: guarded download.
        outputs: encodes what a handler gave, large files by way of a bucket.
        pool: threads for preprocessing and postprocessing.
        children: processes for what may crash or hang.
    """

    fetcher: Fetcher
    outputs: OutputStore
    pool: Executor
    children: Children


@attrs.frozen(kw_only=True)
class Surroundings:
    """What a row offers its handler.

    Attributes:
        fetcher: guarded download.
        pool: threads for preprocessing and postprocessing.
        children: processes for what may crash or hang.
        calls: reports from any thread.
        metrics: of the service.
    """

    fetcher: Fetcher
    pool: Executor
    children: Children
    calls: LoopCalls
    metrics: ServiceMetrics


class PrepareTimeout(JobFailed):
    """Preparing a job's input took too long."""


_REASONS: tuple[tuple[type[Exception], EndReason], ...] = (
    (FetchError, EndReason.FETCH_FAILED),
    (InvalidInput, EndReason.INVALID_INPUT),
    (PrepareTimeout, EndReason.PREPARE_TIMEOUT),
    (OutOfMemory, EndReason.OUT_OF_MEMORY),
    (ModelBroken, EndReason.MODEL_BROKEN),
    (ServiceError, EndReason.FAILED),
    (Exception, EndReason.INTERNAL_ERROR),
)
"""The first that fits wins, so subclasses stand above their bases."""


class Row:
    """One attempt at one job; also the :class:`~aiservices.handler.Context` that its handler sees.

    Args:
        job: its attempt of now.
        surroundings: what the handler may use.
    """

    __slots__ = ("_surroundings", "attempt", "job", "leaving_since", "started_at", "task", "work")

    def __init__(self, job: Job, surroundings: Surroundings) -> None:
        self.job = job
        self.attempt = job.attempt
        self.task: Task[Any] | None = None
        """What the handler's model gets, once it is prepared."""
        self.work: asyncio.Task[None] | None = None
        """Preparing or finishing that is under way."""
        self.started_at = 0.0
        """When it joined the model, in seconds of the loop's clock."""
        self.leaving_since: float | None = None
        """When the model's thread was told to let go of it."""
        self._surroundings = surroundings

    @property
    def current(self) -> bool:
        """Whether this attempt may still end its job."""
        return self.job.is_current(self.attempt)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def cancelled(self) -> bool:
        """Whether the job has ended meanwhile."""
        return not self.job.is_current(self.attempt)

    def progress(self, fraction: float) -> None:
        """Report how much is done, 0 to 1."""
        self._surroundings.calls.post(partial(self.job.set_progress, self.attempt, fraction))

    def wait(self, reason: str | None) -> None:
        """Say why the model lets the job stand still; None once it goes on."""
        self._surroundings.calls.post(partial(self.job.set_wait_reason, self.attempt, reason))

    def emit(self, chunk: Any) -> None:
        """Add one chunk to the job's stream."""
        plain = chunk if isinstance(chunk, str) else msgspec.to_builtins(chunk, builtin_types=(bytes,), str_keys=True)
        self._surroundings.calls.post(partial(self.job.add_chunk, self.attempt, plain))

    def count(self, unit: Unit, amount: float) -> None:
        """Count what the model made."""
        self._surroundings.metrics.produced(unit, amount)

    async def fetch(self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None) -> bytes:
        """Download a URL that the caller gave, through the guard."""
        trace = self.job.trace
        return await self._surroundings.fetcher.fetch(url, field=field, kind=kind, max_bytes=max_bytes, trace=trace)

    async def run_in_pool(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run CPU-heavy work in the pool."""
        work = partial(_contained, partial(function, *args, **kwargs))
        return await asyncio.get_running_loop().run_in_executor(self._surroundings.pool, work)

    async def run_in_child(
        self, function: ChildFunction, data: bytes, /, *, field: str, **arguments: Any
    ) -> tuple[dict[str, Any], bytearray]:
        """Run a function on untrusted bytes in a process that ends with the job."""
        return await self._surroundings.children.run(function, data, field=field, **arguments)

    def complete(self, output: JobOutput) -> None:
        """End the job as COMPLETED, unless something else already ended it."""
        self.job.finish(Stage.COMPLETED, reason=EndReason.COMPLETED, attempt=self.attempt, output=output)

    def fail(self, error: Exception) -> None:
        """End the job as FAILED with a text its caller may read; log whole what is unexpected."""
        if isinstance(error, ServiceError):
            text = str(error)
        else:
            text = f"internal error (job {self.job.id})"
            if self.current:
                log.error("job.failed_unexpectedly", **self.job.log_fields, exc_info=error)
        reason = next(reason for kind, reason in _REASONS if isinstance(error, kind))
        self.job.finish(Stage.FAILED, reason=reason, attempt=self.attempt, error=text)


def _contained(work: Callable[[], T]) -> T:
    """In the pool: what is no Exception, as SystemExit, would go through the event loop and end the process."""
    try:
        return work()
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        raise contained(error) from error
