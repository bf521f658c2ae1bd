"""One service: a handler, its model's thread, its queue, its jobs and the state it is in.

::

    COLD --start or first job--> LOADING --> READY --> STOPPED
                                    \\---> FAILED (load failed; a warm-up job tries again)
                                 READY --> FAILED (the device broke: ``broken``, only a new process helps)

Everything here lives on the event loop; the handler's ``load``, work and ``unload`` run on the model's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import msgspec

from aiservices.config import ServiceConfig
from aiservices.errors import InvalidInput, ServiceError, Unavailable
from aiservices.executor import ModelExecutor, free_memory
from aiservices.fetch import Fetcher
from aiservices.handler import Handler
from aiservices.inputs import read_input
from aiservices.job import Destination, Job, JobStatus, Policy
from aiservices.jobs import JobManager, Submission, fingerprint
from aiservices.logs import get_logger
from aiservices.metrics import Metrics
from aiservices.scheduler import House, make_scheduler
from aiservices.storage import ModelStore, OutputStore, Progress
from aiservices.webhooks import WebhookSender

DRAIN_RETRY_AFTER_S = 10.0
UNLOAD_TIMEOUT_S = 30.0
SHUTDOWN_REASON = "the server shut down before the job ended"

log = get_logger(__name__)


class ServiceState(StrEnum):
    """Where the service's model is."""

    COLD = "COLD"
    LOADING = "LOADING"
    READY = "READY"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


@attrs.frozen(kw_only=True)
class JobRequest:
    """A caller's wish, as a transport read it.

    Attributes:
        input: the JSON object for the handler; ``{"action": "warmup"}`` loads the model and runs nothing.
        input_bytes: size of the request.
        timeout_s, ttl_s: the caller's own limits; None takes the service's.
        webhook: URL that gets the status object when the job ends.
        destination: the caller's bucket for the files of the output.
        idempotency_key: the same key and input bring the same job.
    """

    input: Mapping[str, Any]
    input_bytes: int = 0
    timeout_s: float | None = None
    ttl_s: float | None = None
    low_priority: bool = False
    webhook: str | None = None
    destination: Destination | None = None
    idempotency_key: str | None = None


@attrs.frozen(kw_only=True)
class Shared:
    """What the services of one process share.

    Attributes:
        pool: threads for preprocessing and postprocessing.
        load_slot: held while a model loads: one at a time, so that memory and imports do not race.
        worker_id: names this process in status objects.
        on_broken: told when a service's device is beyond repair.
    """

    fetcher: Fetcher
    webhooks: WebhookSender
    outputs: OutputStore
    metrics: Metrics
    store: ModelStore
    pool: Executor
    load_slot: asyncio.Lock
    worker_id: str
    on_broken: Callable[[], None]


@attrs.frozen
class _Warmup:
    """The input of a job that only loads the model."""


class Service:
    """One named service of the registry.

    Args:
        config: its settings.
        handler: its handler, not loaded yet.
        shared: what it shares with the others.
    """

    def __init__(self, config: ServiceConfig, handler: Handler[Any, Any, Any, Any], shared: Shared) -> None:
        self.name = config.name
        self.config = config
        self.handler = handler
        self.state = ServiceState.COLD
        self.reason: str | None = None
        self.broken = False
        self.draining = False
        self._shared = shared
        self._metrics = shared.metrics.service(config.name)
        self._executor = ModelExecutor(f"model-{config.name}")
        self._loading: asyncio.Task[None] | None = None
        self._load_began = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._jobs = JobManager(config, _LoopTimers(), on_queued=self._on_queued, on_ended=self._on_ended)
        house = House(
            start=self._on_start,
            broken=self._on_broken,
            batch=self._metrics.rows,
            fetch=shared.fetcher.fetch,
            outputs=shared.outputs,
            pool=shared.pool,
            thread=self._executor,
        )
        self._scheduler = make_scheduler(handler, config, house)
        self._metrics.watch(lambda: self._jobs.queued_count, lambda: self._jobs.running_count)
        self._metrics.state(self.state)

    @property
    def busy(self) -> bool:
        """Whether a job has not ended yet."""
        return self._jobs.live_count > 0

    async def start(self) -> None:
        """Begin to load the model, unless the first job shall; returns at once."""
        if self.config.load == "start":
            self._begin_load()

    def submit(self, request: JobRequest) -> Job:
        """Accept a job.

        Raises:
            InvalidInput: naming the field.
            QueueFull: try again later.
            Unavailable: draining, or there is no model.
            Conflict: the idempotency key came with another input.
        """
        warmup = request.input.get("action") == "warmup"
        self._check_available(warmup)
        if request.webhook is not None:
            self._shared.webhooks.check_url(request.webhook, field="$.webhook")
        if request.destination is not None:
            self._shared.outputs.check(request.destination)
        given: Any = _Warmup() if warmup else self._read_input(request.input)
        keyed = request.idempotency_key is not None
        job = self._jobs.submit(
            Submission(
                input=given,
                input_bytes=request.input_bytes,
                policy=self._policy(request),
                webhook=request.webhook,
                destination=request.destination,
                idempotency_key=request.idempotency_key,
                fingerprint=fingerprint(request.input) if keyed else b"",
            )
        )
        if self.state in (ServiceState.COLD, ServiceState.FAILED):
            self._begin_load()
        return job

    def get(self, job_id: str) -> Job:
        """Return a remembered job, or raise JobNotFound."""
        return self._jobs.get(job_id)

    def cancel(self, job_id: str) -> Job:
        """End a job as CANCELLED; one that has ended stays as it is. Raises JobNotFound."""
        return self._jobs.cancel(job_id)

    def retry(self, job_id: str) -> Job:
        """Put a FAILED or TIMED_OUT job back in the queue.

        Raises:
            JobNotFound, Conflict, QueueFull, Unavailable: as for the job's state, or the service's.
        """
        self._check_available(warmup=isinstance(self.get(job_id).input, _Warmup))
        job = self._jobs.retry(job_id)
        self._metrics.retried()
        return job

    def purge(self) -> int:
        """Cancel every queued job; return how many."""
        return self._jobs.purge()

    def status(self, job: Job) -> dict[str, Any]:
        """The job's status object and, while it waits, its place in the queue and what it waits for."""
        shown = job.status_object()
        if job.status is JobStatus.IN_QUEUE:
            shown["queuePosition"] = self._jobs.queue_position(job)
            if self.state is not ServiceState.READY and self.reason:
                shown["reason"] = self.reason
        return shown

    async def wait(self, job: Job, timeout_s: float) -> None:
        """Wait until the job has ended or the time is up. The waiter's own end changes nothing for the job."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(job.done.wait(), timeout_s)

    async def wait_change(self, job: Job, timeout_s: float) -> None:
        """Wait until the stream has a chunk, the job has ended or the time is up."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(job.changed.wait(), timeout_s)

    def health(self) -> dict[str, dict[str, int]]:
        """Counts of jobs and of workers (this process is one) in RunPod's words."""
        counts = self._jobs.ended_counts
        running = self._jobs.running_count
        ready = self.state is ServiceState.READY
        loading = self.state in (ServiceState.COLD, ServiceState.LOADING)
        return {
            "jobs": {
                "completed": counts[JobStatus.COMPLETED],
                "failed": counts[JobStatus.FAILED] + counts[JobStatus.TIMED_OUT],
                "inProgress": running,
                "inQueue": self._jobs.queued_count,
                "retried": self._jobs.retried_count,
            },
            "workers": {
                "idle": int(ready and running == 0),
                "initializing": int(loading),
                "ready": int(ready),
                "running": int(ready and running > 0),
                "throttled": 0,
                "unhealthy": int(self.state is ServiceState.FAILED),
            },
        }

    async def drain(self, grace_s: float) -> None:
        """Refuse new jobs, let those there end within ``grace_s``, end the rest with a reason."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)
        if self._jobs.live_count:
            log.warning("service.drained_unfinished", service=self.name, jobs=self._jobs.live_count)
        self._jobs.fail_all(SHUTDOWN_REASON)

    async def close(self) -> None:
        """End what is left, unload the model on its thread and let the thread end."""
        self.draining = True
        self._jobs.fail_all(SHUTDOWN_REASON)
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        await self._scheduler.close()
        if self._load_began:
            await self._unload()
        self._executor.stop()
        self._jobs.close()
        self._set_state(ServiceState.STOPPED, None)

    def _read_input(self, payload: Mapping[str, Any]) -> Any:
        given = read_input(self.handler.Input, payload)
        try:
            self.handler.validate(given)
        except InvalidInput:
            raise
        except Exception as error:
            log.error("service.validate_failed", service=self.name, exc_info=error)
            raise InvalidInput("$", "the input could not be checked") from None
        return given

    def _policy(self, request: JobRequest) -> Policy:
        return Policy(
            timeout_s=self.config.timeout_s if request.timeout_s is None else request.timeout_s,
            ttl_s=self.config.ttl_s if request.ttl_s is None else request.ttl_s,
            low_priority=request.low_priority,
        )

    def _check_available(self, warmup: bool) -> None:
        if self.draining:
            raise Unavailable("the server is shutting down", DRAIN_RETRY_AFTER_S)
        if self.broken or (self.state is ServiceState.FAILED and not warmup):
            raise Unavailable(self.reason or "the model is not available")

    def _on_queued(self, job: Job) -> None:
        self._idle.clear()
        self._metrics.submitted()
        if isinstance(job.input, _Warmup):
            self._complete_warmups()
        else:
            self._scheduler.add(job)

    def _on_start(self, job: Job) -> None:
        self._jobs.start(job, self._shared.worker_id)

    def _on_ended(self, job: Job) -> None:
        self._scheduler.discard(job)
        self._metrics.ended(job.status, job.delay_s, job.execution_s)
        if self._jobs.live_count == 0:
            self._idle.set()
        log.info(
            "job.finished",
            service=self.name,
            job=job.id,
            status=job.status.value,
            delay_s=round(job.delay_s, 3),
            execution_s=round(job.execution_s, 3),
            error=job.error,
        )
        if job.webhook is not None:
            body = msgspec.json.encode(self.status(job))
            self._shared.webhooks.send(job.webhook, body, service=self.name, job_id=job.id)

    def _on_broken(self, reason: str) -> None:
        """The model's device is beyond repair: nothing runs here any more, whoever supervises must replace us."""
        if self.broken:
            return
        self.broken = True
        log.critical("service.broken", service=self.name, reason=reason)
        self._fail(reason)
        self._shared.on_broken()

    def _set_state(self, state: ServiceState, reason: str | None) -> None:
        self.state, self.reason = state, reason
        self._metrics.state(state)

    def _fail(self, reason: str) -> None:
        self._set_state(ServiceState.FAILED, reason)
        self._scheduler.shut()
        self._jobs.fail_all(reason)

    def _begin_load(self) -> None:
        self._set_state(ServiceState.LOADING, "the model is waiting to be loaded")
        self._loading = asyncio.get_running_loop().create_task(self._load())

    async def _load(self) -> None:
        began = time.monotonic()
        try:
            model_dir, options = await self._fetch()
            async with self._shared.load_slot:
                self.reason = "the model is being loaded"
                self._load_began = True
                device = await asyncio.wrap_future(self._executor.submit(partial(self._load_here, model_dir, options)))
        except Exception as error:
            await self._load_failed(error)
            return
        log.info("service.ready", service=self.name, device=device, seconds=round(time.monotonic() - began, 3))
        self._set_state(ServiceState.READY, None)
        self._scheduler.open()
        self._complete_warmups()

    async def _fetch(self) -> tuple[Path | None, Mapping[str, Any]]:
        """Bring the model here, and the folders that options name; return it and the options with local folders."""
        store, local = self._shared.store, {}
        self.reason = "the model is being fetched"
        model_dir = await store.resolve(self.config.model, self._on_fetching)
        for option, uri in option_folders(self.config, self.handler).items():
            self.reason = f"options.{option} is being fetched"
            on_progress = partial(self._on_fetching, what=f"options.{option}")
            local[option] = str(await store.resolve(uri, on_progress, option=option))
        return model_dir, {**self.config.options, **local}

    def _on_fetching(self, progress: Progress, what: str = "the model") -> None:
        self.reason = f"{what} is being fetched: {progress}"

    async def _load_failed(self, error: Exception) -> None:
        if isinstance(error, ServiceError):
            reason = f"the model could not be loaded: {error}"
            log.error("service.load_failed", service=self.name, reason=reason)
        else:
            reason = f"the model could not be loaded: {type(error).__name__}; the server's log says more"
            log.error("service.load_failed", service=self.name, reason=reason, exc_info=error)
        await self._unload()
        self._fail(reason)

    def _load_here(self, model_dir: Path | None, options: Mapping[str, Any]) -> str:
        """On the model's thread."""
        device = resolve_device(self.config.device)
        check_memory(self.config.memory_gib, device)
        self.handler.load(model_dir, device, options)
        return device

    async def _unload(self) -> None:
        self._load_began = False
        future = asyncio.wrap_future(self._executor.submit(self._unload_here))
        try:
            await asyncio.wait_for(future, UNLOAD_TIMEOUT_S)
        except TimeoutError:
            log.warning("service.unload_timed_out", service=self.name, seconds=UNLOAD_TIMEOUT_S)
        except Exception as error:
            log.error("service.unload_failed", service=self.name, exc_info=error)

    def _unload_here(self) -> None:
        """On the model's thread."""
        self.handler.unload()
        free_memory()

    def _complete_warmups(self) -> None:
        """A warm-up job is done as soon as the model is READY."""
        if self.state is ServiceState.READY:
            for job in self._jobs.queued():
                if isinstance(job.input, _Warmup):
                    self._on_start(job)
                    job.finish(JobStatus.COMPLETED, output=msgspec.json.encode({"state": self.state}))


class _LoopTimers:
    """The running event loop's clock and timers."""

    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay, callback, *args)


def option_folders(config: ServiceConfig, handler: Handler[Any, Any, Any, Any]) -> dict[str, str]:
    """Return the options of a service that name folders, with what they say; what is no text is left to ``load``."""
    given = {option: config.options.get(option) for option in handler.option_folders}
    return {option: value for option, value in given.items() if value and isinstance(value, str)}


def resolve_device(device: str) -> str:
    """Turn ``auto`` into ``cuda`` or ``cpu``. Imports torch only where there may be a GPU. On the model's thread."""
    if device != "auto":
        return device
    if not any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg")):
        return "cpu"
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_memory(memory_gib: float, device: str) -> None:
    """Make sure that the device has ``memory_gib`` free before weights go there. On the model's thread.

    Raises:
        ServiceError: it has less; says how much.
    """
    if memory_gib <= 0:
        return
    free_gib = _free_bytes(device) / 2**30
    if free_gib < memory_gib:
        raise ServiceError(f"it needs {memory_gib:g} GiB on {device}, where {free_gib:.1f} GiB are free (memory_gib)")


def _free_bytes(device: str) -> float:
    if device.startswith("cuda"):
        free, _ = importlib.import_module("torch").cuda.mem_get_info(device)
        return float(free)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return float("inf") if kib is None else float(kib) * 1024
