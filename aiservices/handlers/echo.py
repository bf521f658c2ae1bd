"""A service that gives back what it is sent: for load tests, and to try out a client without a model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
from msgspec import Meta

from aiservices.errors import JobFailed
from aiservices.handler import BatchHandler, Task
from aiservices.options import read_options

SLICE_S = 0.02
"""How often a batch that takes its time looks whether anyone still waits for it."""


@attrs.frozen
class EchoInput:
    """What to give back, and how to behave meanwhile."""

    text: Annotated[str, Meta(max_length=1_000_000, description="What to give back.")]
    seconds: Annotated[float, Meta(ge=0, le=60, description="How long to take; progress is reported meanwhile.")] = 0.0
    chunks: Annotated[int, Meta(ge=0, le=1000, description="In how many parts to stream the text as well.")] = 0
    fail: Annotated[bool, Meta(description="Fail, with the text as the reason.")] = False


@attrs.frozen
class EchoOutput:
    """What was sent, and with how many others it was worked on."""

    text: Annotated[str, Meta(description="The text that was sent.")]
    batch_size: Annotated[int, Meta(description="Jobs in the batch that this one was in.")]


@attrs.frozen
class EchoOptions:
    """The ``options`` of the service: what a pretended model costs.

    Attributes:
        batch_s: seconds for any batch.
        item_s: seconds more for each job in it.
    """

    batch_s: Annotated[float, Meta(ge=0, le=60)] = 0.0
    item_s: Annotated[float, Meta(ge=0, le=60)] = 0.0


class Echo(BatchHandler[EchoInput, EchoOutput]):
    """Text in, the same text out."""

    Options = EchoOptions

    def __init__(self) -> None:
        self._options = EchoOptions()

    def load(self, model_dir: Path | None, device: str, options: Mapping[str, Any]) -> None:
        """Read the options; there is no model."""
        self._options = read_options(EchoOptions, options)

    def predict(self, tasks: Sequence[Task[EchoInput]]) -> list[EchoOutput | Exception]:
        """Give every text back once the slowest job's time is up."""
        for task in tasks:
            _stream(task)
        cost_s = self._options.batch_s + self._options.item_s * len(tasks)
        _pass_time(tasks, max([cost_s, *(task.item.seconds for task in tasks)]))
        return [_answer(task.item, len(tasks)) for task in tasks]


def _answer(item: EchoInput, batch_size: int) -> EchoOutput | Exception:
    return JobFailed(item.text) if item.fail else EchoOutput(item.text, batch_size)


def _stream(task: Task[EchoInput]) -> None:
    text, count = task.item.text, task.item.chunks
    bounds = [len(text) * part // count for part in range(count + 1)] if count else []
    for begin, end in itertools.pairwise(bounds):
        task.context.emit(text[begin:end])


def _pass_time(tasks: Sequence[Task[EchoInput]], seconds: float) -> None:
    """Wait, reporting progress, until the time is up or nobody waits any more."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds and not all(task.context.cancelled for task in tasks):
        for task in tasks:
            task.context.progress(passed / seconds)
        time.sleep(min(SLICE_S, seconds - passed))
