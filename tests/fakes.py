"""Small handlers with one behaviour each, and a service built around any of them without a file or a network."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar, cast

import attrs
from msgspec import Meta

from aiservices.errors import FetchError, InvalidInput
from aiservices.fetch import Fetcher
from aiservices.handler import BatchHandler, Context, Handler, MediaKind, StepHandler, Task, Unit
from aiservices.metrics import Metrics
from aiservices.model import MemoryBudget
from aiservices.outputs import OutputStore
from aiservices.quotas import Quotas
from aiservices.sandbox import Children, Limits
from aiservices.service import Service
from aiservices.settings import Config, OutputsConfig, S3Config, ServiceConfig, WebhookConfig
from aiservices.shared import Shared
from aiservices.storage import ModelStore
from aiservices.trace import Trace
from aiservices.webhooks import WebhookSender

T = TypeVar("T")
P = ParamSpec("P")


@attrs.frozen
class TextInput:
    """What the fakes take."""

    text: Annotated[str, Meta(min_length=1, max_length=100, description="Any text.")]
    count: Annotated[int, Meta(ge=1, le=1_000_000, description="Steps to take.")] = 3


@attrs.frozen
class TextOutput:
    """What the fakes give."""

    text: str


class Upper(BatchHandler[TextInput, TextOutput]):
    """Upper-cases; ``fail`` fails alone, ``explode`` takes its whole batch down."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextOutput | Exception]:
        texts = [task.item.text for task in tasks]
        self.batches.append(texts)
        if "explode" in texts:
            raise RuntimeError("the whole batch exploded")
        return [ValueError("this one") if text == "fail" else TextOutput(text.upper()) for text in texts]


class Gated(Upper):
    """Answers only when the test opens the gate; says when it is at work."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.gate = threading.Event()

    def predict(self, tasks: Sequence[Task[TextInput]]) -> list[TextOutput | Exception]:
        self.entered.set()
        assert self.gate.wait(10), "the test never opened the gate"
        return super().predict(tasks)


class Counting(StepHandler[TextInput, TextOutput]):
    """Counts each row up to ``count``, one per step, and emits every number. Steps only as far as the test allows.

    A row whose text is ``bad-step`` takes the whole step down, ``bad-row`` fails alone, ``bad-join`` fails to join.
    """

    def __init__(self, free_running: bool = True) -> None:
        self.rows: dict[Task[TextInput], int] = {}
        self.steps = 0
        self.widest = 0
        self.resets = 0
        self.free_running = free_running
        self.turn = threading.Semaphore(0)
        self.waiting = threading.Event()

    def admit(self, tasks: Sequence[Task[TextInput]]) -> None:
        if any(task.item.text == "bad-join" for task in tasks):
            raise RuntimeError("cannot join")
        self.rows.update(dict.fromkeys(tasks, 0))
        self.widest = max(self.widest, len(self.rows))

    def step(self) -> list[tuple[Task[TextInput], TextOutput | Exception]]:
        self._await_turn()
        self.steps += 1
        if any(task.item.text == "bad-step" for task in self.rows):
            raise RuntimeError("the step failed")
        return [outcome for task in list(self.rows) for outcome in self._advance(task)]

    def evict(self, tasks: Sequence[Task[TextInput]]) -> None:
        for task in tasks:
            del self.rows[task]

    def reset(self) -> None:
        self.resets += 1
        self.rows.clear()

    def _advance(self, task: Task[TextInput]) -> list[tuple[Task[TextInput], TextOutput | Exception]]:
        self.rows[task] += 1
        task.context.emit(self.rows[task])
        task.context.progress(self.rows[task] / task.item.count)
        if task.item.text == "bad-row":
            del self.rows[task]
            return [(task, ValueError("this row"))]
        if self.rows[task] < task.item.count:
            return []
        return [(task, TextOutput(f"{task.item.text} {self.rows.pop(task)}"))]

    def _await_turn(self) -> None:
        if self.free_running:
            return
        self.waiting.set()
        assert self.turn.acquire(timeout=10), "the test never gave the next turn"


class PickyUpper(Upper):
    """Takes no input that others took before."""

    def validate(self, input: TextInput) -> None:
        raise InvalidInput("$.text", "too short by now")


class Unloadable(Upper):
    """Its model cannot be loaded."""

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        raise InvalidInput("options", "no such weights")


class Shelved(Upper):
    """Has an option that names a folder; keeps what ``load`` was given."""

    option_folders = ("shelf",)

    def __init__(self) -> None:
        super().__init__()
        self.options: Mapping[str, Any] = {}

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        self.options = options


class DirectExecutor(Executor):
    """Runs each call where it is submitted, so that a test decides the order of everything."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class NoNetwork:
    """Stands in for the fetcher where nothing shall be fetched."""

    async def fetch(
        self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None, trace: Trace | None = None
    ) -> bytes:
        raise FetchError(field, "there is no network in this test")

    def check_url(self, url: str, *, field: str) -> None:
        """Accept every URL."""

    async def post_json(
        self, url: str, body: bytes, *, headers: Mapping[str, str] | None = None, timeout_s: float = 1
    ) -> int:
        return 200

    async def put(self, url: str, body: bytes, *, headers: Mapping[str, str], timeout_s: float, field: str) -> int:
        raise FetchError(field, "there is no network in this test")


class FakeContext:
    """A context for calling a handler by hand: keeps what was emitted, fetches from a dict of URL to bytes."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.job_id = "job"
        self.cancelled = False
        self.fractions: list[float] = []
        self.chunks: list[Any] = []
        self.counted: list[tuple[Unit, float]] = []
        self.waits: list[str | None] = []
        self._files = files or {}

    def progress(self, fraction: float) -> None:
        self.fractions.append(fraction)

    def wait(self, reason: str | None) -> None:
        self.waits.append(reason)

    def emit(self, chunk: Any) -> None:
        self.chunks.append(chunk)

    def count(self, unit: Unit, amount: float) -> None:
        self.counted.append((unit, amount))

    async def fetch(
        self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None, trace: Trace | None = None
    ) -> bytes:
        try:
            return self._files[url]
        except KeyError:
            raise FetchError(field, "no such file in this test") from None

    async def run_in_child(
        self, function: Callable[..., tuple[dict[str, Any], bytes]], data: bytes, /, *, field: str, **arguments: Any
    ) -> tuple[dict[str, Any], bytearray]:
        result, body = function(data, field=field, **arguments)
        return result, bytearray(body)

    async def run_in_pool(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)


_: Context = FakeContext()


def make_shared(pool: Executor | None = None) -> Shared:
    """What the services of one process share, without a network."""
    metrics = Metrics()
    network = cast(Fetcher, NoNetwork())
    return Shared(
        fetcher=network,
        webhooks=WebhookSender(WebhookConfig(), network, lambda service, job_id, attempt, result: None),
        outputs=OutputStore(OutputsConfig(), S3Config(), network),
        metrics=metrics,
        store=ModelStore(Config()),
        pool=pool or ThreadPoolExecutor(1),
        children=Children(Limits(processes=1, wall_s=10, memory_bytes=1 << 31)),
        load_slot=asyncio.Lock(),
        budget=MemoryBudget({}),
        worker_id="worker",
        on_broken=lambda: None,
        quotas=Quotas(),
    )


def make_service(handler: Handler[Any, Any], *, shared: Shared | None = None, **settings: Any) -> Service:
    """A service around a handler object; not started."""
    config = ServiceConfig(name="fake", handler="tests.fakes:Upper", device="cpu", **settings)
    return Service(config, handler, shared or make_shared())
