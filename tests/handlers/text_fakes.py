"""A context without a service, and a way to run a handler's rows to their end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import attrs

from aiservices.errors import FetchError
from aiservices.handler import MediaKind, Task, Unit

T = TypeVar("T")
P = ParamSpec("P")
ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


@attrs.define(eq=False)
class FakeContext:
    """Hands out one picture for every URL, or one of its own for each, and writes down what it is told."""

    picture: bytes | None = None
    pictures: Mapping[str, bytes] = attrs.field(factory=dict)
    job_id: str = "job"
    cancelled: bool = False
    chunks: list[str] = attrs.field(factory=list)
    fractions: list[float] = attrs.field(factory=list)
    counted: list[tuple[Unit, float]] = attrs.field(factory=list)
    waits: list[str | None] = attrs.field(factory=list)

    def progress(self, fraction: float) -> None:
        self.fractions.append(fraction)

    def wait(self, reason: str | None) -> None:
        self.waits.append(reason)

    def emit(self, chunk: Any) -> None:
        self.chunks.append(chunk)

    def count(self, unit: Unit, amount: float) -> None:
        self.counted.append((unit, amount))

    async def fetch(self, url: str, *, field: str, kind: MediaKind, max_bytes: int | None = None) -> bytes:
        picture = self.pictures.get(url, self.picture)
        if picture is None:
            raise FetchError(field, "nothing there")
        return picture

    async def run_in_child(
        self, function: Callable[..., tuple[dict[str, Any], bytes]], data: bytes, /, *, field: str, **arguments: Any
    ) -> tuple[dict[str, Any], bytearray]:
        result, body = function(data, field=field, **arguments)
        return result, bytearray(body)

    async def run_in_pool(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(function, *args, **kwargs)


class Stepping(Protocol[ResultT_co]):
    """A handler or an engine that works in steps."""

    def admit(self, tasks: Sequence[Task[Any]]) -> None: ...

    def step(self) -> Sequence[tuple[Task[Any], ResultT_co | Exception]]: ...


def tasks_for(items: Sequence[Any]) -> list[Task[Any]]:
    """Make a task with a context of its own for each item."""
    return [Task(item, FakeContext()) for item in items]


def step_to_end(
    stepping: Stepping[ResultT],
    tasks: Sequence[Task[Any]],
    *,
    before_step: Callable[[int], None] = lambda step: None,
) -> list[ResultT | Exception]:
    """Step until all of these tasks have ended.

    Args:
        stepping: where they were admitted, or will be by ``before_step``.
        tasks: whose results are wanted, in this order.
        before_step: called with the number of the step that follows.
    """
    results: dict[Task[Any], ResultT | Exception] = {}
    step = 0
    while any(task not in results for task in tasks):
        before_step(step)
        results.update(stepping.step())
        step += 1
        assert step < 5000, "the rows never end"
    return [results[task] for task in tasks]
